"""Fill: a text with blanks, what else each of them could have been, and what the network saw."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

import gradio as gr

from openglm.results import TokenLogprob
from openglm.serve.hosted import Hosted
from openglm.serve.web.calls import Desk, Pace
from openglm.serve.web.fields import QUIET, SMALL, html_field, wish, wish_fields
from openglm.serve.web.form import Say
from openglm.serve.web.html import escaped
from openglm.serve.web.picture import draw, seen, tint
from openglm.serve.writing import Writing

USUAL_TOKENS = 16
ALTERNATIVES = 5
EXAMPLES = ("The [MASK] sat on the [MASK].", "春眠[MASK]觉晓，处处闻[MASK]鸟。")
Scored = list[list[TokenLogprob]]
"""The tokens of each blank."""


def build(desk: Desk) -> None:
    """The tab."""
    say = desk.say
    with gr.Row():
        with gr.Column(scale=3):
            text = gr.Textbox(
                say(*EXAMPLES),
                label=say("Text with blanks", "待填空的文本"),
                info=say("Write [MASK] where a blank goes.", "在要填空处写 [MASK]。"),
                lines=3,
                elem_id="fill-text",
            )
            with gr.Row():
                go = gr.Button(say("Fill", "填空"), variant="primary", elem_id="fill-go", **SMALL)
                stop = gr.Button(say("Stop", "停止"), elem_id="fill-stop", **SMALL)
            filled = html_field(elem_classes=["blanks"], elem_id="fill-result")
            picture = html_field(elem_classes=["picture"], elem_id="fill-picture")
        with gr.Column(scale=1, min_width=260):
            fields = wish_fields(say, desk.fills, USUAL_TOKENS, 0.0)
    desk.renewal.choose(fields[0], lambda: desk.fills)

    async def fill(
        request: gr.Request, given: str, *values: Any
    ) -> AsyncGenerator[tuple[str, str], None]:
        asked = wish(*values)
        async with desk.calling(request, asked) as (call, hosted):
            sampling = asked.sampling | {"logprobs": ALTERNATIVES}
            writing = await hosted.prepare([given], "fill", sampling, place=call.place)
            call.measure(writing, hosted.name)
            fragments = writing.asked[0].prompt.fragments
            texts, pace = [""] * (len(fragments) - 1), Pace()
            scored: Scored = [[] for _ in texts]
            async with aclosing(writing.parts()) as parts:
                async for part in parts:
                    texts[part.blank] += part.text
                    scored[part.blank] += part.logprobs
                    if pace.is_due():
                        yield _text(fragments, texts), ""
            shown = _text(fragments, texts) + _alternatives(scored, writing, say)
            yield shown, _picture(hosted, writing, scored, say)

    ways = [go.click, text.submit]
    filling = gr.on(ways, fill, [text, *fields], [filled, picture], **QUIET)
    stop.click(None, cancels=[filling], api_visibility="private")


def _text(fragments: Sequence[str], blanks: Sequence[str]) -> str:
    """The text with its blanks marked."""
    html = escaped(fragments[0])
    for number, (blank, behind) in enumerate(zip(blanks, fragments[1:], strict=True)):
        written = blank.lstrip(" ")
        html += " " * (written != blank)
        html += f'<mark style="--tint:{tint(number)}">{escaped(written) or "&hellip;"}</mark>'
        html += escaped(behind)
    return f"<p>{html}</p>"


def _alternatives(scored: Scored, writing: Writing, say: Say) -> str:
    """For each blank its tokens, and what else could have stood there."""
    ends = writing.asked[0].prompt.end_ids
    html = ""
    for number, tokens in enumerate(scored):
        rows = "".join(_row(token, ends, say) for token in tokens)
        html += (
            f'<table style="--tint:{tint(number)}"><tr><th>{say("Blank", "空")} {number + 1}</th>'
            f'<th colspan="{ALTERNATIVES}">{say("Likeliest there", "此处最可能的词元")}</th></tr>'
            f"{rows}</table>"
        )
    return html


def _row(token: TokenLogprob, ends: frozenset[int], say: Say) -> str:
    """A token, and bars as long as what could have stood there was likely."""
    others = "".join(
        f'<td class="bar" style="--share:{_share(other)}">{_name(other, ends, say)}'
        f"<small>{_share(other)}</small></td>"
        for other in token.top
    )
    name = _name(token, ends, say)
    return f"<tr><td><b>{name}</b><small>{_share(token)}</small></td>{others}</tr>"


def _name(token: TokenLogprob, ends: frozenset[int], say: Say) -> str:
    if token.token_id in ends:
        return f"<i>{say('end', '结束')}</i>"
    return escaped(token.text.replace("\n", "↵").strip()) or "␣"


def _share(token: TokenLogprob) -> str:
    return f"{math.exp(token.log_probability):.1%}"


def _picture(hosted: Hosted, writing: Writing, scored: Scored, say: Say) -> str:
    """What the network saw, drawn and explained."""
    asked = writing.asked[0]
    ids = [[token.token_id for token in tokens] for tokens in scored]
    found = seen(hosted.model.config, asked.prompt, asked.params, ids)
    tokenizer = hosted.model.tokenizer
    names = [tokenizer.decode([token], special=True) for token in found.track.tokens]
    title = say("What the network saw", "网络所见")
    text = say(
        "The token of each row sees the coloured columns: the text sees itself whole, and what is "
        "filled in sees what stands before it. Below each column are its two positions: where it "
        "stands in the text, and its place within its blank.",
        "每一行的词元能看到着色的列：原文内部互相可见，填入的词元能看到它之前的内容。"
        "每列下方是它的两个位置编号：在原文中的位置，以及在空内的位置。",
    )
    return f"<h3>{title}</h3><p>{text}</p>{draw(found, names, say)}"
