"""GET /v1/models, and what models do with text apart from writing: tokens."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal, NotRequired

from fastapi import APIRouter, Depends, Response
from pydantic import Field
from typing_extensions import TypedDict

from openglm.serve.fields import Wire, ignored
from openglm.serve.known import Known, State
from openglm.serve.service import Call, call, headers_of

router = APIRouter()


class TokenizeRequest(Wire):
    """POST /v1/tokenize."""

    model: str
    text: str


class DetokenizeRequest(Wire):
    """POST /v1/detokenize."""

    model: str
    tokens: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(max_length=1 << 20)]


class ModelObject(TypedDict):
    """A model as OpenAI's clients read it, and what it can do if it is loaded.

    An alias has another `root`.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    status: State
    max_model_len: NotRequired[int]
    capabilities: NotRequired[list[str]]


class ModelList(TypedDict):
    """Models."""

    object: Literal["list"]
    data: list[ModelObject]


class Tokens(TypedDict):
    """The ids of a text."""

    tokens: list[int]
    count: int
    max_model_len: int


class Text(TypedDict):
    """The text of ids."""

    text: str


@router.get("/models")
async def list_models(
    call: Annotated[Call, Depends(call)], status: Literal["loaded", "any"] = "loaded"
) -> ModelList:
    """Models that answer, then their aliases; those that are not loaded, if `status` is "any"."""
    models = call.models
    names = [*models.known, *models.aliases]
    every = [(models.look_up(name), name) for name in names]
    shown = [pair for pair in every if status == "any" or pair[0].state == "loaded"]
    return {"object": "list", "data": [model_object(*pair) for pair in shown]}


@router.get("/models/{name:path}")
async def get_model(
    name: str,
    call: Annotated[Call, Depends(call)],
) -> ModelObject:
    """One model, loaded or not."""
    return model_object(call.models.look_up(name), name)


@router.post("/tokenize")
async def tokenize(
    body: TokenizeRequest, response: Response, call: Annotated[Call, Depends(call)]
) -> Tokens:
    """The ids of a text; command tokens in it are text."""
    response.headers.update(headers_of(ignored(body)))
    hosted = call.models.find(body.model)
    async with call.visiting(hosted):
        hosted.check_length([body.text])
        ids = await asyncio.to_thread(hosted.model.tokenizer.encode, body.text)
    return {"tokens": ids, "count": len(ids), "max_model_len": hosted.context_length}


@router.post("/detokenize")
async def detokenize(
    body: DetokenizeRequest, response: Response, call: Annotated[Call, Depends(call)]
) -> Text:
    """The text of ids."""
    response.headers.update(headers_of(ignored(body)))
    hosted = call.models.find(body.model)
    async with call.visiting(hosted):
        return {"text": await asyncio.to_thread(hosted.model.tokenizer.decode, body.tokens)}


def model_object(known: Known, name: str) -> ModelObject:
    """A model as OpenAI's clients read it, where it stands, and what it can do if it is loaded."""
    hosted = known.hosted
    found: ModelObject = {
        "id": name,
        "object": "model",
        "created": known.created if hosted is None else hosted.created,
        "owned_by": "openglm",
        "root": known.name,
        "status": known.state,
    }
    if hosted is None:
        return found
    tasks = {"chat": hosted.can_chat, "tools": hosted.can_call_tools, "fill": hosted.can_fill}
    found["max_model_len"] = hosted.context_length
    found["capabilities"] = ["generate", "embed", *(task for task, can in tasks.items() if can)]
    return found
