"""Write: a text that goes on, shown as it is written."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from openglm.serve.web.calls import Desk, Pace
from openglm.serve.web.fields import QUIET, SMALL, wish, wish_fields
from openglm.serve.web.form import Say

USUAL_TOKENS = 512
USUAL_TEMPERATURE = 0.8
LINES = 18


def build(desk: Desk) -> None:
    """The tab. The text goes on where it stands, so whoever likes it writes on again."""
    say = desk.say
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(
                label=say("Text", "文本"),
                placeholder=say("Begin a text ...", "写下开头……"),
                lines=LINES,
                max_lines=LINES,
                elem_id="write-text",
                buttons=["copy"],
            )
            with gr.Row():
                go = gr.Button(
                    say("Write on", "续写"), variant="primary", elem_id="write-go", **SMALL
                )
                stop = gr.Button(say("Stop", "停止"), elem_id="write-stop", **SMALL)
            count = gr.Markdown(elem_id="write-count")
        with gr.Column(scale=1, min_width=260):
            fields = wish_fields(say, desk.writes, USUAL_TOKENS, USUAL_TEMPERATURE)
    desk.renewal.choose(fields[0], lambda: desk.writes)

    async def write(
        request: gr.Request, begun: str, *values: Any
    ) -> AsyncGenerator[tuple[str, str], None]:
        asked = wish(*values)
        async with desk.calling(request, asked) as (call, hosted):
            writing = await hosted.prepare([begun], "generate", asked.sampling, place=call.place)
            call.measure(writing, hosted.name)
            grown, pace, since = begun, Pace(), time.monotonic()
            async with aclosing(writing.parts()) as parts:
                async for part in parts:
                    grown += part.text
                    if part.finish_reason is not None or pace.is_due():
                        seconds = time.monotonic() - since
                        yield grown, _counted(writing.usage.completion_tokens, seconds, say)

    going = gr.on([go.click, text.submit], write, [text, *fields], [text, count], **QUIET)
    stop.click(None, cancels=[going], api_visibility="private")


def _counted(tokens: int, seconds: float, say: Say) -> str:
    speed = f"{tokens / seconds:.0f}" if seconds else "-"
    return say(f"{tokens} tokens, {speed} per second", f"{tokens} 个词元，每秒 {speed} 个")
