"""The endpoints of ChatGLM-6B's, ChatGLM2's and CodeGeeX2's own servers: POST / with a prompt.

With `glm serve --legacy`. A setting of 0 means the default there, a temperature too; `max_length`
counts prompt and answer together. A key is needed here as everywhere.
"""

from __future__ import annotations

import datetime
from contextlib import aclosing
from typing import Annotated, Any, Literal, NotRequired

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from typing_extensions import TypedDict

from openglm.serve.bounds import MOST_MESSAGES
from openglm.serve.chat_call import ChatCall, answer
from openglm.serve.document import answers
from openglm.serve.fields import Wire, ignored
from openglm.serve.service import Call, call

router = APIRouter()
CHAT = {"max_length": 2048, "top_p": 0.7, "temperature": 0.95}
CODE = {"max_length": 128, "top_p": 0.95, "temperature": 0.2}


class LegacyRequest(Wire):
    """POST /: a question with its history, or, with `lang`, the beginning of a program."""

    prompt: str
    history: Annotated[list[tuple[str, str]], Field(max_length=MOST_MESSAGES, default_factory=list)]
    lang: str | None = None
    max_length: Annotated[int, Field(ge=0, le=1 << 31, strict=True)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_k: Annotated[int, Field(ge=0, strict=True)] | None = None

    def settings(self, defaults: dict[str, Any]) -> dict[str, Any]:
        """Sampling, and `max_length` of the whole."""
        found = {name: getattr(self, name) or value for name, value in defaults.items()}
        return found | ({"top_k": self.top_k} if self.top_k else {})


class LegacyAnswer(TypedDict):
    """The answer to a question has the history with it, the rest of a program its language."""

    response: str
    history: NotRequired[list[list[str]]]
    lang: NotRequired[str]
    status: Literal[200]
    time: str


@router.post("/", response_model=None, responses=answers(LegacyAnswer))
async def legacy(body: LegacyRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Answers a prompt with the first model."""
    work = _chat(body, call) if body.lang is None else _code(body, call)
    return await call.whole(work, ignored(body))


async def _chat(body: LegacyRequest, call: Call) -> dict[str, Any]:
    messages = []
    for question, reply in body.history:
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": reply})
    messages.append({"role": "user", "content": body.prompt})
    sampling = body.settings(CHAT)
    length = sampling.pop("max_length")
    hosted = call.models.default
    async with call.entering(hosted):
        asked = ChatCall(messages=messages, sampling=sampling, place=call.place)
        found = await answer(hosted, asked)
        found.writing.shorten(length)
        call.measure(found.writing, hosted.name)
    text = ""
    async with aclosing(found.pieces()) as pieces:
        async for piece in pieces:
            text += "".join(part for part in piece.pieces if isinstance(part, str))
    history = [*body.history, (body.prompt, text)]
    return {"response": text, "history": history, "status": 200, "time": _now()}


async def _code(body: LegacyRequest, call: Call) -> dict[str, Any]:
    hosted = call.models.default
    sampling = body.settings(CODE)
    length = sampling.pop("max_length")
    async with call.entering(hosted):
        writing = await hosted.prepare([body.prompt], "generate", sampling, place=call.place)
        writing.shorten(length)
        call.measure(writing, hosted.name)
    async with aclosing(writing.parts()) as parts:
        text = "".join([part.text async for part in parts])
    return {"response": text, "lang": body.lang, "status": 200, "time": _now()}


def _now() -> str:
    return datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")
