"""`EngineRunner`: an engine that steps in a thread of its own, while coroutines wait for tokens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from openglm.engine.engine import Engine
from openglm.engine.reading import Reading
from openglm.engine.request import Event, Request
from openglm.engine.writer import Asked, Step
from openglm.errors import OpenGLMError
from openglm.log import logger


class EngineFailed(OpenGLMError):
    """A step of the engine raised: no request of it can go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whose a request is, and where in line it stands; see `Engine.add`."""

    tenant: str = ""
    deadline: float | None = None
    priority: int = 0


class EngineRunner:
    """Steps an engine while it has work.

    `write` and `close` are called from one event loop; the engine's thread only hands events over.

    Args:
        engine: nobody else steps it.

    Attributes:
        failure: what a step raised; the engine is dead then.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.failure: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, asyncio.Queue[Event | None]] = {}
        self._news = threading.Condition()
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="openglm-engine", daemon=True)
        self._thread.start()

    async def write(
        self, asked: Asked, place: Place, begun: Callable[[Request], object] = lambda request: None
    ) -> AsyncGenerator[Step, None]:
        """Steps of a request as they come; whoever stops listening ends it.

        Args:
            asked: what to write.
            place: whose it is.
            begun: is given the request, as the engine sees it.

        Raises:
            RequestError: see `Engine.add`.
            EngineFailed: the engine cannot go on.
            Exception: what a rule of this request raised.
        """
        self._check()
        request = self.engine.add(
            *asked, priority=place.priority, tenant=place.tenant, deadline=place.deadline
        )
        begun(request)
        async with aclosing(self._follow(request)) as steps:
            async for step in steps:
                yield step

    async def read(self, reading: Reading, place: Place) -> str:
        """How a reading ended: "stop" when all is read; whoever stops waiting ends it.

        Args:
            reading: what to read.
            place: whose it is.

        Raises:
            RequestError: see `Engine.add_reading`.
            EngineFailed: the engine cannot go on.
            NumericalError: see `Reading.write`.
        """
        self._check()
        request = self.engine.add_reading(
            reading, priority=place.priority, tenant=place.tenant, deadline=place.deadline
        )
        async with aclosing(self._follow(request)) as steps:
            return [step.finish_reason or "" async for step in steps][-1]

    async def close(self) -> None:
        """Ends the thread behind the present step; requests that are unfinished fail."""
        with self._news:
            self._is_closing = True
            self._news.notify()
        await asyncio.to_thread(self._thread.join)
        self._tell_all()

    @property
    def num_open(self) -> int:
        """Requests that somebody listens to."""
        return len(self._open)

    async def _follow(self, request: Request) -> AsyncGenerator[Step, None]:
        """Steps of a request that the engine has just been given."""
        queue = self._open[request.id] = asyncio.Queue()
        with self._news:
            self._news.notify()
        try:
            while True:
                event = await queue.get()
                if event is None:
                    raise self._end() from self.failure
                yield event.step
                if event.is_last:
                    if request.error is not None:
                        raise request.error
                    return
        finally:
            del self._open[request.id]
            self.engine.cancel(request.id)

    def _check(self) -> None:
        if self.failure is not None or self._is_closing:
            raise self._end() from self.failure

    def _end(self) -> EngineFailed:
        """Why no request can go on."""
        if self.failure is not None:
            return EngineFailed(f"the engine stopped: {self.failure}")
        return EngineFailed("the model was unloaded before the answer was finished")

    def _run(self) -> None:
        try:
            while self._wait():
                if events := self.engine.step():
                    self._loop.call_soon_threadsafe(self._deliver, events)
        except Exception as error:
            logger.exception("a step of the engine failed")
            self.failure = error
            self._loop.call_soon_threadsafe(self._tell_all)

    def _wait(self) -> bool:
        """Whether there is work; sleeps until there is, or there never will be."""
        with self._news:
            self._news.wait_for(lambda: self.engine.has_work or self._is_closing)
        return not self._is_closing

    def _deliver(self, events: list[Event]) -> None:
        for event in events:
            if queue := self._open.get(event.request_id):
                queue.put_nowait(event)

    def _tell_all(self) -> None:
        for queue in self._open.values():
            queue.put_nowait(None)
