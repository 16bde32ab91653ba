"""What all routes share: models, keys, limits; and one call with its place among them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse

from openglm.serve.access import require_key
from openglm.serve.hosted import Models
from openglm.serve.identity import Identity
from openglm.serve.limits import Admission, Limits
from openglm.serve.metrics import Metrics, Stopwatch
from openglm.serve.runner import Place
from openglm.serve.wire import EventResponse, while_connected
from openglm.serve.writing import Usage, Writing

REQUEST_SECONDS = 600.0
"""After which a request is ended where it stands."""
USUAL_TOKENS = 2048
"""Reserved for an answer whose length is not limited."""


@dataclass(frozen=True, slots=True)
class Service:
    """One server.

    Args:
        models: that it serves.
        limits: of what keys may ask for.
        metrics: of how it does.
    """

    models: Models
    limits: Limits
    metrics: Metrics


@dataclass(slots=True)
class Call:
    """A call of somebody who was let in.

    Args:
        request: as it came.
        service: whose models it is for.
        identity: whose it is.
        place: of its requests in the engine.

    Attributes:
        admission: once there is a place for it.
    """

    request: Request
    service: Service
    identity: Identity
    place: Place
    admission: Admission | None = None

    @property
    def models(self) -> Models:
        """All models."""
        return self.service.models

    @asynccontextmanager
    async def entering(
        self, max_tokens: int | None, completions: int = 1
    ) -> AsyncGenerator[None, None]:
        """Takes a place among the calls of this key; if the block fails, it is free again.

        Args:
            max_tokens: of each completion; None if there is no bound.
            completions: how many.

        Raises:
            LimitReached: there is none.
        """
        tokens = (max_tokens or USUAL_TOKENS) * completions
        self.admission = await self.service.limits.admit(self.identity, tokens)
        try:
            yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Gives the place back."""
        if self.admission is not None:
            self.admission.close()

    def measure(self, writing: Writing, model: str) -> None:
        """Times what is written, and counts it towards what this key may use."""
        stopwatch = Stopwatch(self.service.metrics, model)
        writing.meter = _Meter(stopwatch, self.admission)

    def stream(self, events: AsyncGenerator[bytes, None], ignored: list[str]) -> Response:
        """The response that sends events; the call is over when it is."""
        return EventResponse(events, _headers(ignored), self.leave)

    async def whole(self, work: Awaitable[Mapping[str, Any]], ignored: list[str]) -> Response:
        """The response with a result, unless the client leaves before."""
        try:
            found = await while_connected(self.request, work)
        finally:
            self.leave()
        return JSONResponse(dict(found), headers=_headers(ignored))


@dataclass(slots=True)
class _Meter:
    """See `Meter`."""

    stopwatch: Stopwatch
    admission: Admission | None

    def token(self, index: int) -> None:
        if self.admission is not None:
            self.admission.start()
        self.stopwatch.token(index)

    def finished(self, reason: str) -> None:
        self.stopwatch.finished(reason)

    def close(self, usage: Usage) -> None:
        spent = usage.prompt_tokens, usage.completion_tokens
        self.stopwatch.close(*spent)
        if self.admission is not None:
            self.admission.spent(*spent)


def call(request: Request, identity: Annotated[Identity, Depends(require_key)]) -> Call:
    """The call of a request: a dependency of routes."""
    place = Place(tenant=identity.key_id, deadline=time.monotonic() + REQUEST_SECONDS)
    return Call(request, request.app.state.service, identity, place)


def _headers(ignored: list[str]) -> dict[str, str]:
    return {"X-OpenGLM-Ignored": ", ".join(ignored)} if ignored else {}
