"""The API in OpenAPI's words: what each route reads, and all that it may answer.

What routes answer is declared as `TypedDict`s beside the code that makes it. A route that returns
one says so in its annotation, and the answer is held to it; one that makes its response itself,
because it may stream, says it with `answers`. Errors come from the tables that make them.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter
from typing_extensions import TypedDict  # pydantic takes that of typing from Python 3.12 on

from openglm.serve.errors import SAYINGS
from openglm.serve.guard import MESSAGES

OPENAPI = "3.2.0"
"""The first that can tell what the events of a stream are (`itemSchema`)."""
SCHEMAS = "#/components/schemas/{model}"
DESCRIPTION = (
    "Models of the GLM family behind the APIs of OpenAI, under /v1, and of BigModel, under "
    "/api/paas/v4. Fields that a call has and this document has not are named in the header "
    "X-OpenGLM-Ignored of the response; null is the same as nothing."
)
TEXT = {"schema": {"type": "string"}}
IGNORED = {"X-OpenGLM-Ignored": {"description": "Fields that did nothing."} | TEXT}
RETRY_AFTER = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
HEADERS: dict[int, dict[str, Any]] = {
    405: {"Allow": {"description": "What the path has.", "required": True} | TEXT},
    429: RETRY_AFTER,
    503: RETRY_AFTER,
}
STREAM = "The answer; if `stream` is true, in events. The data of the last are `[DONE]`, no JSON."


class OpenAIErrorBody(TypedDict):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(TypedDict):
    """An error under /v1."""

    error: OpenAIErrorBody


class BigModelErrorBody(TypedDict):
    """What was wrong."""

    code: str
    message: str


class BigModelError(TypedDict):
    """An error under /api/paas/v4; its code is of BigModel's published list."""

    error: BigModelErrorBody


def errors(body: Any) -> dict[int | str, dict[str, Any]]:
    """`responses` of all routes with errors of this kind: whatever the tables of errors have."""
    statuses = {saying.status for saying in SAYINGS.values()} | set(MESSAGES)
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted(statuses):
        described = {"description": HTTPStatus(status).phrase, "model": body}
        found[status] = described | ({"headers": HEADERS[status]} if status in HEADERS else {})
    return found


def answers(whole: Any, chunk: Any = None) -> dict[int | str, dict[str, Any]]:
    """`responses` of a route that makes its response itself.

    Args:
        whole: type of the answer.
        chunk: type of an event, if it can be streamed.
    """
    found: dict[str, Any] = {"model": whole, "headers": IGNORED}
    if chunk is not None:
        data = {"contentMediaType": "application/json", "contentSchema": _schema(chunk)}
        item = {
            "type": "object",
            "required": ["data"],
            "properties": {"data": {"type": "string"} | data},
        }
        found["content"] = {"text/event-stream": {"itemSchema": item}}
        found["description"] = STREAM
    return {200: found}


def document(app: FastAPI) -> dict[str, Any]:
    """All routes of an app as an OpenAPI document."""
    if app.openapi_schema is None:
        app.openapi_schema = _document(app)
    return app.openapi_schema


def _document(app: FastAPI) -> dict[str, Any]:
    found = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version=OPENAPI,
        description=DESCRIPTION,
        routes=app.routes,
    )
    schemas = found["components"]["schemas"]
    for path in found["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)  # the framework's own, which is answered as 400
            streamed = operation["responses"].get("200", {}).get("content", {})
            item = streamed.get("text/event-stream", {}).get("itemSchema")
            if item is not None:
                schemas |= item["properties"]["data"]["contentSchema"].pop("$defs")
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    return found


def _schema(kind: Any) -> dict[str, Any]:
    """The schema of a type, whose parts `_document` moves to where it refers to them."""
    found = TypeAdapter(kind).json_schema(mode="serialization", ref_template=SCHEMAS)
    return {"$defs": {}} | found
