"""Buttons that load and unload models, for admins; over HTTP they are in `openai.loading`."""

from __future__ import annotations

from typing import Any

import gradio as gr

from openglm.serve.web.calls import Desk
from openglm.serve.web.fields import QUIET, SMALL


class LoadingFields:
    """The choice of a model, and what to do with it.

    Args:
        desk: of the page.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        say = desk.say
        with gr.Row(visible=False, elem_classes=["low"]) as self.group:
            self.which = gr.Dropdown(
                list(desk.service.models.known),
                label=say("Model", "模型"),
                elem_id="models-which",
                min_width=220,
            )
            self.load = gr.Button(
                say("Load", "加载"), variant="primary", elem_id="models-load", **SMALL
            )
            self.unload = gr.Button(
                say("Unload", "卸载"), variant="stop", elem_id="models-unload", **SMALL
            )

    def connect(self, blocks: gr.Blocks) -> list[Any]:
        """Says what happens when; the events after which other models are loaded."""
        blocks.load(self._look, None, self.group, **QUIET)
        # It may take minutes, of which the reader sees how many have passed.
        waiting = QUIET | {"show_progress": "full", "show_progress_on": self.which}
        return [
            self.load.click(self._load, self.which, None, **waiting),
            self.unload.click(self._unload, self.which, None, **waiting),
        ]

    async def _look(self, request: gr.Request) -> Any:
        return gr.update(visible=(await self.desk.who(request)).role == "admin")

    async def _load(self, request: gr.Request, name: str | None) -> None:
        async with self.desk.managing(request) as call:
            await call.models.load(name or "")

    async def _unload(self, request: gr.Request, name: str | None) -> None:
        async with self.desk.managing(request) as call:
            await call.models.unload(name or "")
