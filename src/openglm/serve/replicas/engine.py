"""`ReplicatedEngine`: stands where an engine does, while replicas of the model do the work.

What is written depends on a request and its seed alone (see `Engine`). So when a replica dies,
another one writes the request again from its beginning, and what is new goes on to the client: the
stream has paused, and nothing is lost or said twice.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from queue import Empty, SimpleQueue
from typing import Any

from openglm.engine.engine import Engine, Statistics
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.reading import Reading
from openglm.engine.request import Event, Request
from openglm.engine.sampling import Rule, fresh_seed
from openglm.engine.text_stream import StopStrings
from openglm.engine.writer import Ends, Step
from openglm.language_model import LanguageModel
from openglm.log import logger
from openglm.model import Transformer, build
from openglm.serve.replicas.orders import About, Line, Order, ReplicaDied, Writable
from openglm.serve.runner import EngineFailed
from openglm.tokenizers import Tokenizer

MOST_DEATHS = 3
"""Of replicas in one request: perhaps it is what kills them."""
WAIT_SECONDS = 0.1
"""For something to come from a replica; so long the end of the server may have to wait."""
GRACE_SECONDS = 5.0
"""Behind a deadline, which replicas keep themselves as long as they live."""


class RemoteModel(LanguageModel):
    """A model whose weights are with its replicas: it lays requests out, and cannot answer them.

    Args:
        name: how it was asked for.
        about: it, as a replica says.
        tokenizer: of it.
        line: to the replicas.
    """

    def __init__(self, name: str, about: About, tokenizer: Tokenizer | None, line: Line) -> None:
        network = build(about.config).to(about.dtype)  # shapes only
        super().__init__(network, tokenizer, name, about.token_ids)
        self._line = line

    def engine(self, **settings: Any) -> Engine:
        """See `LanguageModel.engine`; the settings are those of the replicas."""
        return ReplicatedEngine(self.network, self._line, banned_ids=self._banned_ids, **settings)


class ReplicatedEngine(Engine):
    """An engine that hands requests on.

    `add` and `cancel` are called in an event loop, `step` in a thread.

    Args:
        model: shapes of the network, by which requests are checked.
        line: to the replicas.
        **settings: see `Engine`.
    """

    def __init__(self, model: Transformer, line: Line, **settings: Any) -> None:
        super().__init__(model, **settings)
        self._line = line
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._tasks: dict[int, asyncio.Task[Step]] = {}
        self._replicas: dict[str, Statistics] = {}

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        rules: Sequence[Rule] = (),
        ends: Ends | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline: float | None = None,
    ) -> Request:
        """See `Engine.add`; `rules` and `ends` are made again where the request arrives."""
        if params.seed is None:  # all replicas must write the same
            params = dataclasses.replace(params, seed=fresh_seed())
        request = super().add(
            prompt, params, rules, ends, priority=priority, tenant=tenant, deadline=deadline
        )
        special = isinstance(ends, StopStrings) and ends.special
        self._send(request, Writable(prompt=prompt, params=params, special=special))
        return request

    def add_reading(
        self,
        reading: Reading,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline: float | None = None,
    ) -> Request:
        """See `Engine.add_reading`."""
        request = super().add_reading(reading, priority=priority, tenant=tenant, deadline=deadline)
        self._send(request, reading)
        return request

    def cancel(self, request_id: int) -> bool:
        """See `Engine.cancel`."""
        task = self._tasks.get(request_id)
        return task is not None and task.cancel()

    def step(self) -> list[Event]:
        """What has come; waits for it a moment."""
        try:
            events = [self._events.get(timeout=WAIT_SECONDS)]
        except Empty:
            return []
        while not self._events.empty():
            events.append(self._events.get())
        for event in events:
            request = self._requests[event.request_id]
            request.steps.append(event.step)
            if event.is_last:
                request.finish_reason = event.step.finish_reason
                del self._requests[request.id]
        return events

    @property
    def statistics(self) -> Statistics:
        """Of all replicas together, as each last said; who waits for a replica waits, too."""
        running = sum(bool(request.steps) for request in [*self._requests.values()])
        waiting = len(self._requests) - running
        every = [dataclasses.asdict(one) for one in self._replicas.values()]
        if not every:
            return super().statistics
        added = {name: sum(one[name] for one in every) for name in every[0]}
        return Statistics(**added | {"running": running, "waiting": waiting})

    def _send(self, request: Request, work: Writable | Reading) -> None:
        """Hands a request on that was let in."""
        self._arrived.clear()  # nothing is fed here
        order = Order(
            work=work,
            priority=request.priority,
            tenant=request.tenant,
            seconds=None if request.deadline is None else request.deadline - self.clock(),
        )
        task = asyncio.get_running_loop().create_task(self._fetch(request, order))
        self._tasks[request.id] = task
        task.add_done_callback(lambda done: self._close(request, done))

    async def _fetch(self, request: Request, order: Order) -> Step:
        """Passes on all steps but the last one, which it returns."""
        last = None
        patience = None if order.seconds is None else order.seconds + GRACE_SECONDS
        async with asyncio.timeout(patience), aclosing(self._steps(order)) as steps:
            async for step in steps:
                if last is not None:  # the end of a blank that others follow
                    self._events.put(Event(request.id, last, False))
                    last = None
                if step.token is None:
                    last = step
                else:
                    self._events.put(Event(request.id, step, False))
        if last is None:
            raise EngineFailed("a replica ended a request without a word")
        return last

    def _close(self, request: Request, done: asyncio.Task[Step]) -> None:
        """Passes on the last step of a request, whatever became of it."""
        del self._tasks[request.id]
        reason = "error"
        if done.cancelled():
            reason = "cancelled"
        elif isinstance(error := done.exception(), TimeoutError):
            reason = "deadline"
        elif isinstance(error, Exception):
            request.error = error
        else:
            self._events.put(Event(request.id, done.result(), True))
            return
        self._events.put(Event(request.id, Step(request.writer.index, None, 0.0, reason), True))

    async def _steps(self, order: Order) -> AsyncGenerator[Step, None]:
        """The steps of a request, each once, from as many replicas as it takes."""
        said: list[int | None] = []
        for _ in range(MOST_DEATHS):
            heard, replica = 0, ""
            try:
                async with aclosing(self._line(order)) as parcels:
                    async for parcel in parcels:
                        replica = parcel.replica
                        self._replicas[replica] = parcel.statistics
                        known = parcel.steps[: max(len(said) - heard, 0)]
                        _check_same(said[heard : heard + len(known)], known)
                        heard += len(parcel.steps)
                        if isinstance(order.work, Reading) and parcel.reading is not None:
                            order.work.take(parcel.reading)
                        for step in parcel.steps[len(known) :]:
                            said.append(step.token)
                            yield step
                        if parcel.error is not None:
                            raise parcel.error
                return
            except ReplicaDied as died:
                self._replicas.pop(replica, None)
                logger.warning("%s; %d steps are written again by another", died, len(said))
        raise EngineFailed(f"{MOST_DEATHS} replicas ended while they wrote this request")


def _check_same(said: list[int | None], again: list[Step]) -> None:
    """Raises `EngineFailed` if what a replica writes again is not what was said before."""
    if said != [step.token for step in again]:
        raise EngineFailed(
            "a replica ended, and another does not write the same: they differ in hardware or files"
        )
