"""`Replica`: one copy of a model with its engine, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar

from openglm.engine.reading import Reading
from openglm.engine.rule_book import RuleBook
from openglm.engine.writer import Step
from openglm.errors import OpenGLMError
from openglm.loading import load
from openglm.log import logger
from openglm.serve.replicas.orders import About, Order, Parcel, Writable
from openglm.serve.runner import EngineFailed, EngineRunner, Place

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What each replica loads; every machine of a cluster must find the same under these names.

    Args:
        model: see `openglm.load`, as the next three.
        dtype: of the weights.
        device: where it runs.
        tokenizer: folder of the vocabulary, if it is not beside the weights.
        engine: settings; see `Engine`.
    """

    model: str
    dtype: str = "auto"
    device: str = "auto"
    tokenizer: str | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)


class Replica:
    """One copy of a model.

    Args:
        source: of it.

    Attributes:
        name: tells it from other replicas.
    """

    def __init__(self, source: Source) -> None:
        self.model = load(
            source.model, dtype=source.dtype, device=source.device, tokenizer=source.tokenizer
        )
        self.name = secrets.token_hex(4)
        self._engine = self.model.engine(**source.engine)
        self._rules = RuleBook(self.model.tokenizer, self.model.config.vocab_size)
        self._runner: EngineRunner | None = None

    def describe(self) -> About:
        """What the server must know."""
        network = self.model.network
        return About(config=network.config, dtype=network.dtype, token_ids=self.model.token_ids)

    async def work(self, order: Order) -> AsyncGenerator[Parcel, None]:
        """Does what is ordered; whoever stops listening ends it."""
        if self._runner is None:  # it belongs to the event loop that is running now
            self._runner = EngineRunner(self._engine)
        deadline = None if order.seconds is None else time.monotonic() + order.seconds
        place = Place(tenant=order.tenant, deadline=deadline, priority=order.priority)
        try:
            if isinstance(order.work, Reading):
                reason = await self._runner.read(order.work, place)
                yield self._parcel([Step(order.work.index, None, 0.0, reason)], reading=order.work)
            else:
                async with aclosing(self._write(self._runner, order.work, place)) as several:
                    async for steps in several:
                        yield self._parcel(steps)
        except EngineFailed:
            logger.exception("this replica cannot go on")
            os._exit(1)  # a process that is gone is noticed at once, and replaced
        except OpenGLMError as error:
            yield self._parcel([], error=error)

    async def close(self) -> None:
        """Ends the engine."""
        if self._runner is not None:
            await self._runner.close()

    async def _write(
        self, runner: EngineRunner, work: Writable, place: Place
    ) -> AsyncGenerator[list[Step], None]:
        equip = self._rules.equip  # in a thread: a grammar takes seconds
        asked = await asyncio.to_thread(equip, work.prompt, work.params, work.special)
        async with aclosing(gathered(runner.write(asked, place))) as several:
            async for steps in several:
                yield steps

    def _parcel(self, steps: list[Step], **more: Any) -> Parcel:
        statistics = self._engine.statistics
        return Parcel(replica=self.name, statistics=statistics, steps=steps, **more)


async def gathered(items: AsyncGenerator[T, None]) -> AsyncGenerator[list[T], None]:
    """Items as they come; those that come while nobody asks are given together."""
    waiting: asyncio.Queue[T | None] = asyncio.Queue()

    async def collect() -> None:
        try:
            async with aclosing(items):
                async for item in items:
                    waiting.put_nowait(item)
        finally:
            waiting.put_nowait(None)

    collecting = asyncio.create_task(collect())
    has_ended = False
    try:
        while not has_ended:
            found = [await waiting.get()]
            while not waiting.empty():
                found.append(waiting.get_nowait())
            has_ended = found[-1] is None
            if several := [item for item in found if item is not None]:
                yield several
        await collecting  # raises what went wrong
    finally:
        collecting.cancel()
        await asyncio.wait({collecting})
