"""Texts that are only read: several at once, never so many that others wait behind all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from openglm.engine.reading import Reading
from openglm.serve.errors import ServeError
from openglm.serve.runner import EngineRunner, Place

AT_ONCE = 4
"""In the engine: who comes later stands behind these, not behind two thousand texts."""


async def read_all(runner: EngineRunner, readings: Sequence[Reading], place: Place) -> None:
    """Reads all of them; if one fails, none is read on.

    Raises:
        ServeError: there was not enough time.
        Exception: see `EngineRunner.read`.
    """
    places = asyncio.Semaphore(AT_ONCE)

    async def read(reading: Reading) -> None:
        async with places:
            if await runner.read(reading, place) != "stop":
                raise ServeError("timeout", "the time for this request was over before it was read")

    tasks = [asyncio.create_task(read(reading)) for reading in readings]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
