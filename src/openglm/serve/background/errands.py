"""Calls that nobody waits for, answered by the code of the routes, behind those of people."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from openglm.errors import suggest
from openglm.log import logger
from openglm.serve.bigmodel import chat as bigmodel_chat
from openglm.serve.bigmodel import embeddings as bigmodel_embeddings
from openglm.serve.bigmodel.embeddings import V4EmbeddingRequest
from openglm.serve.bigmodel.requests import V4ChatRequest
from openglm.serve.errors import ServeError, as_serve_error, say
from openglm.serve.fields import Wire
from openglm.serve.identity import Identity
from openglm.serve.invalid import invalid_body
from openglm.serve.known import NotLoaded
from openglm.serve.limits import SOON_SECONDS, LimitReached
from openglm.serve.openai import chat, completions, embeddings
from openglm.serve.openai.embeddings import EmbeddingRequest
from openglm.serve.openai.requests import ChatRequest, CompletionRequest, Sampled
from openglm.serve.runner import EngineFailed, Place
from openglm.serve.service import REQUEST_SECONDS, Errand, Service

PRIORITY = -1
"""In the engine; calls that somebody waits for have 0."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A route that can be asked later.

    Args:
        name: of its path, without the prefix of the dialect.
        request: what it reads.
        answer: the object that it writes.
        is_bigmodel: whose errors it has.
    """

    name: str
    request: type[Wire]
    answer: Callable[[Any, Errand], Awaitable[dict[str, Any]]]
    is_bigmodel: bool = False


async def _chat(body: ChatRequest, errand: Errand) -> dict[str, Any]:
    written, found = await chat.begin(body, errand)
    return await written.collect(found)


async def _completions(body: CompletionRequest, errand: Errand) -> dict[str, Any]:
    return await (await completions.begin(body, errand)).collect()


async def _embeddings(body: EmbeddingRequest, errand: Errand) -> dict[str, Any]:
    return await (await embeddings.begin(body, errand)).collect()


async def _bigmodel_embeddings(body: V4EmbeddingRequest, errand: Errand) -> dict[str, Any]:
    return await bigmodel_embeddings.collect(await embeddings.begin(body, errand))


async def _bigmodel_chat(body: V4ChatRequest, errand: Errand) -> dict[str, Any]:
    written, found = await bigmodel_chat.begin(body, errand)
    return await written.collect(found)


V4_CHAT = Endpoint("chat/completions", V4ChatRequest, _bigmodel_chat, is_bigmodel=True)
ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": Endpoint("chat/completions", ChatRequest, _chat),
    "/v1/completions": Endpoint("completions", CompletionRequest, _completions),
    "/v1/embeddings": Endpoint("embeddings", EmbeddingRequest, _embeddings),
    "/v4/chat/completions": V4_CHAT,
    "/v4/embeddings": Endpoint(
        "embeddings", V4EmbeddingRequest, _bigmodel_embeddings, is_bigmodel=True
    ),
}
"""By their urls in batches; BigModel's documentation writes its own as /v4/..."""


def find_endpoint(url: object) -> Endpoint:
    """The endpoint of a url; `ServeError` if there is none."""
    found = ENDPOINTS.get(url) if isinstance(url, str) else None
    if found is None:
        hint = suggest(str(url), ENDPOINTS)
        raise ServeError("invalid_field", f"there is no endpoint {str(url)[:64]!r}: {hint}", "url")
    return found


def read(endpoint: Endpoint, body: object) -> Wire:
    """A body as the endpoint's route would read it; `ServeError` if that would refuse it."""
    try:
        found = endpoint.request.model_validate(body)
    except ValidationError as error:
        raise invalid_body(error.errors(), body) from error
    if isinstance(found, Sampled) and found.stream:
        raise ServeError("invalid_field", "nobody is there to read a stream", "stream")
    return found


async def run(
    service: Service, identity: Identity, endpoint: Endpoint, body: object
) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of the answer, or of the error that stands for it.

    Args:
        service: whose models answer.
        identity: who asked.
        endpoint: that is asked.
        body: as the client wrote it.

    Raises:
        EngineFailed: the answer is still to be had, from an engine that works and is loaded.
    """
    try:
        return 200, await _answer(service, identity, endpoint, read(endpoint, body))
    except EngineFailed:
        raise
    except NotLoaded as error:  # an admin may load it again
        raise EngineFailed(error.message) from error
    except Exception as error:
        found = as_serve_error(error, endpoint.name)
        if found.kind == "internal":
            logger.exception("a call in the background failed")
        return say(found, endpoint.is_bigmodel)


async def _answer(
    service: Service, identity: Identity, endpoint: Endpoint, body: Wire
) -> dict[str, Any]:
    """The answer, for which it waits until other calls give back the tokens that it needs."""
    while True:
        deadline = time.monotonic() + REQUEST_SECONDS
        place = Place(tenant=identity.key_id, deadline=deadline, priority=PRIORITY)
        errand = Errand(service=service, identity=identity, place=place)
        try:
            return await endpoint.answer(body, errand)
        except LimitReached as reached:
            if not reached.is_brief:
                raise
        finally:
            errand.leave()
        await asyncio.sleep(SOON_SECONDS)
