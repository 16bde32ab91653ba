"""`Renewal`: what on the page follows which models are loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from openglm.serve.web.fields import QUIET

Update = Callable[[gr.Request], Any]
"""Request of the page -> what a component becomes."""


class Renewal:
    """Components and what they become; each tab adds its own while it is built."""

    def __init__(self) -> None:
        self._shown: list[tuple[Any, Update]] = []
        self._chosen: list[tuple[gr.Dropdown, Callable[[], Sequence[str]]]] = []

    def show(self, block: Any, update: Update) -> None:
        """A component, or a part of the page, becomes what `update` gives."""
        self._shown.append((block, update))

    def choose(self, field: gr.Dropdown, names: Callable[[], Sequence[str]]) -> None:
        """A field has these names to choose from; a single one needs no field."""
        self._chosen.append((field, names))

    def follow(self, event: Callable[..., Any]) -> Any:
        """Renews everything when something happens; call it once all tabs are built.

        Args:
            event: listens, e.g. `blocks.load`.

        Returns:
            what that returned.
        """
        fields = [field for field, _ in self._chosen]
        blocks = [block for block, _ in self._shown]
        # A name that is no choice any more is what this mends, and must not be refused.
        return event(self._renew, fields, [*blocks, *fields], preprocess=False, **QUIET)

    async def _renew(self, request: gr.Request, *values: Any) -> list[Any]:
        """In the event loop of the server, where models come and go."""
        updates = [update(request) for _, update in self._shown]
        for (_, names), value in zip(self._chosen, values, strict=True):
            updates.append(_choice(names(), value))
        return updates


def _choice(names: Sequence[str], value: Any) -> Any:
    """The field with these names; who chose one of them keeps it."""
    kept = value if value in names else next(iter(names), None)
    return gr.update(choices=list(names), value=kept, visible=len(names) > 1)
