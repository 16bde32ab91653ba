"""Whether the server works, and its API in OpenAPI's words."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from typing_extensions import TypedDict

from openglm import __version__
from openglm.serve.document import document
from openglm.serve.errors import LATER_SECONDS, ServeError
from openglm.serve.service import Call, call

router = APIRouter()


class Health(TypedDict):
    """That a server is here."""

    status: Literal["ok"]


class Ready(TypedDict):
    """Which models answer."""

    status: Literal["ready"]
    models: list[str]


class Version(TypedDict):
    """Which openglm this is."""

    version: str


@router.get("/health")
async def health() -> Health:
    """That a server is here: all that anybody may know."""
    return {"status": "ok"}


@router.get("/ready")
async def ready(call: Annotated[Call, Depends(call)]) -> Ready:
    """Which models answer; 503 if one of them cannot any more."""
    broken = [name for name, one in call.models.hosted.items() if one.runner.failure is not None]
    if broken:
        message = f"the engine of {', '.join(broken)} stopped"
        raise ServeError("unavailable", message, retry_after=LATER_SECONDS)
    return {"status": "ready", "models": list(call.models.hosted)}


@router.get("/version")
async def version(call: Annotated[Call, Depends(call)]) -> Version:
    """Which openglm this is."""
    return {"version": __version__}


@router.get("/openapi.json", include_in_schema=False)
async def openapi(request: Request, call: Annotated[Call, Depends(call)]) -> dict[str, Any]:
    """All routes as an OpenAPI document."""
    return document(request.app)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(call: Annotated[Call, Depends(call)]) -> Response:
    """Counts and times for Prometheus."""
    return Response(call.service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
