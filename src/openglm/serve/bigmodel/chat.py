"""POST /api/paas/v4/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from openglm.serve.bigmodel.answers import V4ChatCompletion, V4ChatCompletionChunk
from openglm.serve.bigmodel.code import complete
from openglm.serve.bigmodel.objects import V4Completion
from openglm.serve.bigmodel.requests import V4ChatRequest
from openglm.serve.chat_call import ChatAnswer, answer
from openglm.serve.document import answers
from openglm.serve.errors import bigmodel_body
from openglm.serve.fields import ignored
from openglm.serve.service import Call, Errand, call
from openglm.serve.wire import DONE, event, new_id

router = APIRouter()


@router.post(
    "/chat/completions",
    response_model=None,
    responses=answers(V4ChatCompletion, V4ChatCompletionChunk),
)
async def chat_completions(body: V4ChatRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Answers a conversation."""
    written, found = await begin(body, call)
    if body.stream:
        return call.stream(_events(call, found, written), ignored(body))
    return await call.whole(written.collect(found), ignored(body))


async def begin(body: V4ChatRequest, errand: Errand) -> tuple[V4Completion, ChatAnswer]:
    """See `openai.chat.begin`."""
    hosted = errand.models.find(body.model)
    asked = body.call(errand.place)
    async with errand.entering(hosted):
        errand.claim(body.request_id)
        if body.extra is None:
            found = await answer(hosted, asked, errand.bound)
        else:
            found = await complete(hosted, body.extra, asked)
        errand.measure(found.writing, hosted.name)
    name = body.request_id or new_id("req-")
    settings = body.model, body.copies, body.calls_functions
    return V4Completion(*settings, request_id=name, used=found.usage), found


async def _events(
    call: Call, found: ChatAnswer, written: V4Completion
) -> AsyncGenerator[bytes, None]:
    """The stream: a chunk for each piece, the last with reason and usage."""
    try:
        async with aclosing(found.pieces()) as pieces:
            async for piece in pieces:
                for index in written.places(piece.index):
                    for one in written.events(piece, index):
                        yield one
    except Exception as error:
        yield event(written.broken_off())
        yield event(bigmodel_body(call.broken_off(error)))
    yield DONE
