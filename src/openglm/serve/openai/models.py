"""GET /v1/models, and what models do with text apart from writing: tokens."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import Field
from typing_extensions import TypedDict

from openglm.serve.hosted import Hosted
from openglm.serve.openai.requests import Wire
from openglm.serve.service import Call, call

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
    """A model as OpenAI's clients read it, and what it can do; an alias has another `root`."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int
    capabilities: list[str]


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
async def list_models(call: Annotated[Call, Depends(call)]) -> ModelList:
    """All models, then their aliases."""
    models = call.models
    found = [_model(hosted, name) for name, hosted in models.hosted.items()]
    found += [_model(models.find(alias), alias) for alias in models.aliases]
    return {"object": "list", "data": found}


@router.get("/models/{name:path}")
async def get_model(
    name: str,
    call: Annotated[Call, Depends(call)],
) -> ModelObject:
    """One model."""
    return _model(call.models.find(name), name)


@router.post("/tokenize")
async def tokenize(
    body: TokenizeRequest,
    call: Annotated[Call, Depends(call)],
) -> Tokens:
    """The ids of a text; command tokens in it are text."""
    hosted = call.models.find(body.model)
    hosted.check_length([body.text])
    ids = await asyncio.to_thread(hosted.model.tokenizer.encode, body.text)
    return {"tokens": ids, "count": len(ids), "max_model_len": hosted.context_length}


@router.post("/detokenize")
async def detokenize(
    body: DetokenizeRequest,
    call: Annotated[Call, Depends(call)],
) -> Text:
    """The text of ids."""
    hosted = call.models.find(body.model)
    return {"text": await asyncio.to_thread(hosted.model.tokenizer.decode, body.tokens)}


def _model(hosted: Hosted, name: str) -> ModelObject:
    tasks = {"chat": hosted.can_chat, "tools": hosted.can_call_tools, "fill": hosted.can_fill}
    return {
        "id": name,
        "object": "model",
        "created": hosted.created,
        "owned_by": "openglm",
        "root": hosted.name,
        "max_model_len": hosted.context_length,
        "capabilities": ["generate", *(task for task, can in tasks.items() if can)],
    }
