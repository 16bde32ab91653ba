"""POST /v1/models/load and /v1/models/unload: which models are in memory. For admins.

A client names a model that the server knows, never a file: what can be loaded is decided by who
starts the server.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from openglm.serve.access import require_admin
from openglm.serve.fields import Wire, ignored
from openglm.serve.known import Known
from openglm.serve.openai.models import model_object
from openglm.serve.service import Call, call, headers_of

router = APIRouter(dependencies=[Depends(require_admin)])


class LoadRequest(Wire):
    """POST /v1/models/load, and unload."""

    model: str


@router.post("/models/load", response_model=None)
async def load(body: LoadRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Loads a model and answers when it is there; others go on answering."""
    async with call.visiting():
        known = await call.models.load(body.model)
    return _answer(body, known)


@router.post("/models/unload", response_model=None)
async def unload(body: LoadRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Unloads a model and answers when it is gone: once the calls that it answers have ended."""
    async with call.visiting():
        known = await call.models.unload(body.model)
    return _answer(body, known)


def _answer(body: LoadRequest, known: Known) -> Response:
    return JSONResponse(model_object(known, body.model), headers=headers_of(ignored(body)))
