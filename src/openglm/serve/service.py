"""What all routes share: models, keys, limits, files, jobs; and one call with its place."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse

from openglm.serve.access import require_key
from openglm.serve.errors import ServeError, as_serve_error
from openglm.serve.files import Files
from openglm.serve.hosted import Hosted
from openglm.serve.identity import Identity
from openglm.serve.jobs import Jobs
from openglm.serve.limits import Admission, Limits
from openglm.serve.metrics import Metrics, Stopwatch
from openglm.serve.models import Models
from openglm.serve.record import Record, record_of, report
from openglm.serve.runner import Place
from openglm.serve.wire import EventResponse, while_connected
from openglm.serve.worker import Worker
from openglm.serve.writing import Meter, Usage, Writing

REQUEST_SECONDS = 600.0
"""After which a request is ended where it stands."""
MOST_NAME_CHARACTERS = 160
"""In a header: two names with what is between them, see `with_near`."""


@dataclass(frozen=True, slots=True)
class Service:
    """One server.

    Args:
        models: that it serves.
        limits: of what keys may ask for.
        metrics: of how it does.
        files: that keys uploaded.
        jobs: that are done later.
        worker: does them.
        request_ids: of calls in work that were named by their clients, each with its key's id.
    """

    models: Models
    limits: Limits
    metrics: Metrics
    files: Files
    jobs: Jobs
    worker: Worker
    request_ids: set[tuple[str, str]] = field(default_factory=set)


@dataclass(slots=True, kw_only=True)
class Errand:
    """What somebody asks of the models; on its own, one that nobody waits for.

    Args:
        service: whose models it is for.
        identity: whose it is.
        place: of its requests in the engine.

    Attributes:
        admission: once there is a place for it.
        hosted: the model that it keeps from being unloaded.
        begun: when it came, by the clock of the metrics.
    """

    service: Service
    identity: Identity
    place: Place
    admission: Admission | None = None
    hosted: Hosted | None = None
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.service.metrics.clock()

    @property
    def models(self) -> Models:
        """All models."""
        return self.service.models

    @property
    def record(self) -> Record | None:
        """Of the request that somebody waits at."""
        return None

    @asynccontextmanager
    async def entering(
        self, of: Hosted | None = None, *, uses_tokens: bool = True
    ) -> AsyncGenerator[None, None]:
        """Takes a place among the calls of this key; if the block fails, it is free again.

        Texts are read in the block, which may take long. Only then it is known how many tokens the
        call may use, and `measure` or `reserve` reserves them.

        Args:
            of: the model that is asked; it stays loaded until this leaves. Nothing is awaited
                between finding it and this call, or it may be gone.
            uses_tokens: one at least, which the key must have left.

        Raises:
            LimitReached: there is none.
        """
        if of is not None:
            of.enter()
            self.hosted = of
        try:
            self.admission = await self._admit(int(uses_tokens))
            yield
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Gives the place back; again, it does nothing."""
        if self.admission is not None:
            self.admission.close()
        if self.hosted is not None:
            self.hosted.leave()
            self.hosted = None

    def claim(self, request_id: str | None) -> None:
        """Takes a name that its client gave; on its own nothing: jobs have names of ours."""

    def reserve(self, tokens: int) -> None:
        """Reserves what the call may use at most, of what this key may use today.

        Raises:
            LimitReached: there is not so much left.
        """
        if self.admission is not None:
            self.admission.reserve(tokens)

    def bound(self, writing: Writing) -> None:
        """Reserves what a writing may use at most; one without a bound gets what is left for it.

        Raises:
            LimitReached: that is less than its prompts, or than what was asked for.
        """
        left = None if self.admission is None else self.admission.left
        if left is not None and not writing.is_bounded:
            writing.lower(left)
        self.reserve(writing.most_tokens)

    def measure(self, writing: Writing, model: str) -> None:
        """Reserves what may be written (see `bound`), times it, and counts it."""
        self.bound(writing)
        writing.meter = self.meter(model)

    def meter(self, model: str) -> Meter:
        """Times a call of a model, and counts it towards what this key may use."""
        stopwatch = Stopwatch(self.service.metrics, model, self.begun)
        return _Meter(stopwatch, self.admission, self.record)

    async def _admit(self, tokens: int) -> Admission:
        return await self.service.limits.admit_later(self.identity, tokens)


@dataclass(slots=True, kw_only=True)
class Call(Errand):
    """A call of somebody who was let in, and waits for the answer.

    Args:
        request: as it came.

    Attributes:
        claimed: its entry in `Service.request_ids`.
    """

    request: Request
    claimed: tuple[str, str] | None = None

    @property
    def record(self) -> Record | None:
        """Of the request."""
        return record_of(self.request.scope)

    def claim(self, request_id: str | None) -> None:
        """Holds a request id until the call is over; nothing for None.

        Raises:
            ServeError: another call of this key has it.
        """
        if request_id is None:
            return
        name = (self.identity.key_id, request_id)
        if name in self.service.request_ids:
            message = f"a request {request_id!r} of this key is in work already"
            raise ServeError("duplicate", message, "request_id")
        self.service.request_ids.add(name)
        self.claimed = name

    def leave(self) -> None:
        """Gives place and request id back."""
        Errand.leave(self)  # zero-argument super() does not work in a dataclass with slots
        if self.claimed is not None:
            self.service.request_ids.discard(self.claimed)
            self.claimed = None

    @asynccontextmanager
    async def visiting(self, of: Hosted | None = None) -> AsyncGenerator[None, None]:
        """A place among the calls of this key for the time of the block, which uses no tokens."""
        async with self.entering(of, uses_tokens=False):
            yield
        self.leave()

    def stream(self, events: AsyncGenerator[bytes, None], ignored: list[str]) -> Response:
        """The response that sends events; the call is over when it is."""
        return EventResponse(events, headers_of(ignored), self.leave)

    def broken_off(self, error: Exception) -> ServeError:
        """What the client of a stream may know of its end; what it did not cause is logged."""
        found = as_serve_error(error)
        if found.kind == "internal":
            report(self.request.scope, error)
        return found

    async def whole(self, work: Awaitable[Mapping[str, Any]], ignored: list[str]) -> Response:
        """The response with a result, unless the client leaves before."""
        try:
            found = await while_connected(self.request, work)
        finally:
            self.leave()
        return JSONResponse(dict(found), headers=headers_of(ignored))

    async def _admit(self, tokens: int) -> Admission:
        return await self.service.limits.admit(self.identity, tokens)


@dataclass(slots=True)
class _Meter:
    """See `Meter`."""

    stopwatch: Stopwatch
    admission: Admission | None
    record: Record | None

    def started(self) -> None:
        if self.admission is not None:
            self.admission.start()

    def token(self, index: int) -> None:
        self.started()
        self.stopwatch.token(index)

    def finished(self, reason: str) -> None:
        self.stopwatch.finished(reason)

    def close(self, usage: Usage) -> None:
        spent = usage.prompt_tokens, usage.completion_tokens
        self.stopwatch.close(*spent)
        if self.admission is not None:
            self.admission.spent(*spent)
        if self.record is not None:
            self.record.model = self.stopwatch.model
            self.record.prompt_tokens, self.record.completion_tokens = spent


def call_of(service: Service, identity: Identity, request: Request) -> Call:
    """A call that begins now."""
    place = Place(tenant=identity.key_id, deadline=time.monotonic() + REQUEST_SECONDS)
    return Call(request=request, service=service, identity=identity, place=place)


async def call(request: Request, identity: Annotated[Identity, Depends(require_key)]) -> Call:
    """The call of a request: a dependency of routes.

    It awaits nothing, but a plain function would be called in a thread.
    """
    return call_of(request.app.state.service, identity, request)


def headers_of(ignored: list[str]) -> dict[str, str]:
    """Names fields that did nothing; what they are called is the client's word."""
    # A value with a blank at either end is no header, and an escape may be ten times as long.
    shown = [ascii(name)[1:-1][:MOST_NAME_CHARACTERS].strip() for name in ignored]
    return {"X-OpenGLM-Ignored": ", ".join(shown)} if shown else {}
