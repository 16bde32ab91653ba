"""POST /v1/fill: every blank of a text, in turn."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from openglm.errors import RequestError
from openglm.results import TokenLogprob
from openglm.serve.document import answers
from openglm.serve.errors import openai_body
from openglm.serve.fields import ignored
from openglm.serve.openai.answers import Filled, FilledChunk
from openglm.serve.openai.objects import logprobs, reason, usage
from openglm.serve.openai.requests import FillRequest
from openglm.serve.service import Call, call
from openglm.serve.wire import DONE, event, new_id
from openglm.serve.writing import Writing

router = APIRouter()


@router.post("/fill", response_model=None, responses=answers(Filled, FilledChunk))
async def fill(body: FillRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Fills `[MASK]`, `[sMASK]` and `[gMASK]` of a text, left to right."""
    hosted = call.models.find(body.model)
    if not hosted.can_fill:
        raise RequestError(f"{hosted.name} fills no blanks", hint="GLM and ChatGLM-6B do")
    async with call.entering(hosted):
        writing = await hosted.prepare([body.text], "fill", body.sampling(), place=call.place)
        call.measure(writing, hosted.name)
    frame = {"id": new_id("fill-"), "created": int(time.time()), "model": body.model}
    if body.stream:
        return call.stream(_events(call, writing, frame), ignored(body))
    return await call.whole(_whole(writing, frame), ignored(body))


async def _whole(writing: Writing, frame: dict[str, Any]) -> dict[str, Any]:
    """All blanks of each result, and the text with them."""
    fragments = writing.asked[0].prompt.fragments
    count = len(fragments) - 1
    texts = [[""] * count for _ in writing.asked]
    reasons = [["stop"] * count for _ in writing.asked]
    scored: list[list[list[TokenLogprob]]] = [[[] for _ in range(count)] for _ in writing.asked]
    async with aclosing(writing.parts()) as parts:
        async for part in parts:
            texts[part.index][part.blank] += part.text
            scored[part.index][part.blank] += part.logprobs
            if part.finish_reason is not None:
                reasons[part.index][part.blank] = reason(part.finish_reason)
    choices = [
        {
            "index": index,
            "text": "".join(a + b for a, b in zip(fragments, [*blanks, ""], strict=True)),
            "blanks": [
                {"text": text, "finish_reason": ended, "logprobs": logprobs(tokens)}
                for text, ended, tokens in zip(blanks, reasons[index], scored[index], strict=True)
            ],
        }
        for index, blanks in enumerate(texts)
    ]
    return {**frame, "object": "fill", "choices": choices} | usage(writing.usage)


async def _events(
    call: Call, writing: Writing, frame: dict[str, Any]
) -> AsyncGenerator[bytes, None]:
    """A chunk for each piece of a blank, then usage."""
    chunk = {**frame, "object": "fill.chunk"}
    try:
        async with aclosing(writing.parts()) as parts:
            async for part in parts:
                ended = None if part.finish_reason is None else reason(part.finish_reason)
                choice = {"index": part.index, "blank": part.blank, "text": part.text}
                scored = {"finish_reason": ended, "logprobs": logprobs(part.logprobs)}
                yield event({**chunk, "choices": [choice | scored]})
        yield event({**chunk, "choices": []} | usage(writing.usage))
    except Exception as error:
        yield event(openai_body(call.broken_off(error)))
    yield DONE
