"""`create_app`: routes, errors and life of the server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import iter_route_contexts
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import ASGIApp, Scope

from openglm import __version__
from openglm.errors import OpenGLMError, suggest
from openglm.language_model import LanguageModel
from openglm.serve import background, bigmodel, legacy, openai, status
from openglm.serve.access import Locked, check_routes
from openglm.serve.crowd import Crowd
from openglm.serve.database import Database
from openglm.serve.document import BigModelError, OpenAIError, errors
from openglm.serve.errors import (
    ClientGone,
    Kind,
    ServeError,
    as_serve_error,
    say,
)
from openglm.serve.files import Files
from openglm.serve.guard import Guard
from openglm.serve.identity import AuthenticationFailed
from openglm.serve.invalid import invalid_body
from openglm.serve.jobs import Jobs
from openglm.serve.keys import KeyStore
from openglm.serve.known import Known
from openglm.serve.limits import LimitReached, Limits
from openglm.serve.metrics import Metrics
from openglm.serve.models import Models
from openglm.serve.record import report
from openglm.serve.service import Service
from openglm.serve.settings import ServeSettings
from openglm.serve.web.door import Door
from openglm.serve.worker import Worker

BIGMODEL = "/api/paas/v4"
KINDS: dict[int, Kind] = {
    401: "authentication",
    403: "permission",
    404: "not_found",
    405: "method",
    408: "timeout",
    413: "too_large",
    500: "internal",
}
"""Of HTTP errors that the framework raises, and refusals of the guard."""


def create_app(
    models: Mapping[str, LanguageModel | Known],
    database: Database,
    keys: KeyStore,
    settings: ServeSettings | None = None,
) -> ASGIApp:
    """The server of these models.

    Args:
        models: by the name that clients use, the default first; or how to have them.
        database: counts what keys use.
        keys: who may call it.
        settings: how it is served.
    """
    chosen = settings or ServeSettings()
    known = {
        name: one if isinstance(one, Known) else _in_memory(name, one, chosen)
        for name, one in models.items()
    }

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncGenerator[None, None]:
        served = Models(known, chosen.aliases)
        await served.start()
        limits = Limits(database, chosen.limits)
        files, jobs = Files(database, chosen.files), Jobs(database)
        await asyncio.to_thread(files.sweep)
        worker = Worker(jobs)
        service = Service(served, limits, Metrics(served.statistics), files, jobs, worker)
        app.state.service = service
        worker.start(background.kinds(service, keys))
        async with nullcontext() if door is None else door.opened(service):
            yield
        await worker.close()
        await served.close()
        await limits.close()

    app = FastAPI(
        title="openglm",
        version=__version__,
        lifespan=life,
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.keys = keys
    said, said_by_bigmodel = errors(OpenAIError), errors(BigModelError)
    for part in (openai.router, background.openai_router):
        app.include_router(part, prefix="/v1", responses=said)
    for part in (bigmodel.router, background.bigmodel_router):
        app.include_router(part, prefix=BIGMODEL, responses=said_by_bigmodel)
    app.include_router(status.router, responses=said)
    if chosen.legacy:
        app.include_router(legacy.router, responses=said)
    for kind in (OpenGLMError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer)
    check_routes(app.routes)
    crowd = Crowd(app, lambda: app.state.service.limits, _refuse_caller)
    locked = Locked(crowd, keys, _refuse_caller)
    door = None if chosen.web_path is None else _door(locked, keys, chosen.web_path)
    return Guard(door or locked, chosen.guard, _refuse)


def _door(locked: ASGIApp, keys: KeyStore, path: str) -> Door:
    """The way in to the web page; its packages are only needed where there is one."""
    from openglm.serve.web.page import web_page

    return Door(locked, keys, web_page, path)


def _in_memory(name: str, model: LanguageModel, settings: ServeSettings) -> Known:
    """A model that somebody else loaded, and keeps."""
    return Known(name=name, read=lambda: model, engine=settings.engine)


def error_response(path: str, error: ServeError) -> Response:
    """An error in the dialect of the path."""
    headers = (
        {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    )
    status, body = say(error, path.startswith(BIGMODEL))
    return JSONResponse(body, status, headers=headers)


async def _answer(request: Request, error: Exception) -> Response:
    path = request.url.path
    if isinstance(error, RequestValidationError):
        return error_response(path, invalid_body(error.errors(), error.body))
    if isinstance(error, HTTPException):
        return _framework_error(request, error)
    if isinstance(error, ClientGone):
        return Response(status_code=499)
    found = as_serve_error(error, path.removeprefix(f"{BIGMODEL}/").removeprefix("/v1/"))
    if found.kind == "internal":
        report(request.scope, error)
    return error_response(path, found)


def _framework_error(request: Request, error: HTTPException) -> Response:
    """What the framework refused, said as our own errors are."""
    path = request.url.path
    routes = [route for route in iter_route_contexts(request.app.routes) if route.path is not None]
    kind = KINDS.get(error.status_code, "invalid")
    if kind == "not_found":
        near = suggest(path, {f"{route.path}" for route in routes})
        return error_response(path, ServeError(kind, f"there is nothing at {path[:200]}: {near}"))
    if kind == "method":
        allowed = ", ".join(_methods(path, routes))
        message = f"{request.method[:20]} {path} is not possible: it takes {allowed}"
        response = error_response(path, ServeError(kind, message))
        response.headers["Allow"] = allowed
        return response
    return error_response(path, ServeError(kind, f"{request.method} {path}: {error.detail}"))


def _methods(path: str, routes: Sequence[Any]) -> list[str]:
    """All that a path has; the framework would name those of its first route.

    A path that is written out goes before one with names in it, as in OpenAPI.
    """
    routes = [route for route in routes if compile_path(route.path)[0].match(path)]
    routes = [route for route in routes if route.path == path] or routes
    return sorted(set().union(*(route.methods or () for route in routes)))


def _refuse_caller(scope: Scope, error: AuthenticationFailed | LimitReached) -> Response:
    """The answer to somebody without a key, or for whom there is no place."""
    return error_response(scope["path"], as_serve_error(error))


def _refuse(scope: Scope, status: int, message: str) -> Response:
    """The guard's refusals, in the dialect of their path."""
    response = error_response(scope["path"], ServeError(KINDS.get(status, "invalid"), message))
    response.status_code = status
    return response
