"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from openglm.serve.chat_call import ChatAnswer, answer
from openglm.serve.document import answers
from openglm.serve.errors import openai_body
from openglm.serve.fields import ignored
from openglm.serve.openai.answers import ChatCompletion, ChatCompletionChunk
from openglm.serve.openai.objects import Completion, usage
from openglm.serve.openai.requests import ChatRequest
from openglm.serve.service import Call, Errand, call
from openglm.serve.wire import DONE, event

router = APIRouter()


@router.post(
    "/chat/completions",
    response_model=None,
    responses=answers(ChatCompletion, ChatCompletionChunk),
)
async def chat_completions(body: ChatRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Answers a conversation."""
    written, found = await begin(body, call)
    if body.stream:
        return call.stream(_events(call, found, written, body.wants_usage), ignored(body))
    return await call.whole(written.collect(found), ignored(body))


async def begin(body: ChatRequest, errand: Errand) -> tuple[Completion, ChatAnswer]:
    """The object that will answer, and what it will be made of.

    Raises:
        OpenGLMError: the call cannot be honoured.
    """
    hosted = errand.models.find(body.model)
    asked = body.call(errand.place)
    async with errand.entering(hosted):
        found = await answer(hosted, asked, errand.bound)
        errand.measure(found.writing, hosted.name)
    return Completion(body.model, body.copies, body.calls_functions), found


async def _events(
    call: Call, found: ChatAnswer, written: Completion, wants_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The stream: a chunk for each piece, then usage if it is wanted, then the end."""
    begun: set[int] = set()
    try:
        async with aclosing(found.pieces()) as pieces:
            async for piece in pieces:
                for index in written.places(piece.index):
                    if index not in begun:
                        begun.add(index)
                        yield event(written.chunk(index, {"role": "assistant", "content": ""}))
                    for one in written.events(piece, index):
                        yield one
        if wants_usage:
            yield event(written.frame("chat.completion.chunk", []) | usage(found.usage))
    except Exception as error:
        yield event(openai_body(call.broken_off(error)))
    yield DONE
