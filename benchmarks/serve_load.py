"""Claim: 64 streams at once for five minutes: no error, and no memory that is not given back.

Then 1,000 clients leave in the middle of their streams: nothing runs on for them. How long the load
lasts can be changed with OPENGLM_LOAD_SECONDS. Clients share the cores with the server.
"""

import asyncio
import os
from contextlib import suppress
from statistics import linear_regression
from time import perf_counter
from typing import Any

from benchmarks.serving import Server, begin, body, percentiles, serving

SECONDS = float(os.environ.get("OPENGLM_LOAD_SECONDS", "300"))
CLIENTS, TOKENS = 64, 200
WARMUP = 0.2
"""Share of the time in which caches and pools fill."""
LEAVING, LEAVING_AT_ONCE = 1000, 50
QUIET_SECONDS = 10.0
"""Within which what nobody waits for must have ended."""


def measure() -> dict[str, Any]:
    """Errors, memory and time between tokens under load, and what is left of those who left."""
    with serving() as server:
        load = asyncio.run(_load(server))
        left = asyncio.run(_leave(server))
    return {
        "model": "mini",
        "clients": CLIENTS,
        "tokens_each": TOKENS,
        "seconds": SECONDS,
        "load": load,
        "left": left,
    }


async def _load(server: Server) -> dict[str, Any]:
    """Clients that call again and again, while the server's memory is watched."""
    start, gaps = perf_counter(), list[float]()
    sizes: list[tuple[float, int]] = []  # (s, bytes)
    watching = asyncio.create_task(_watch(server, start, sizes))
    clients = (_client(server, number, start + SECONDS, gaps) for number in range(CLIENTS))
    calls = [call for several in await asyncio.gather(*clients) for call in several]
    watching.cancel()
    seconds, resident = zip(*(one for one in sizes if one[0] > WARMUP * SECONDS), strict=True)
    failed = [call for call in calls if call]
    return {
        "calls": len(calls),
        "errors": len(failed),
        "first_error": failed[0] if failed else None,
        "tokens_per_s": len(calls) * TOKENS / (perf_counter() - start),
        "between_tokens_s": percentiles(gaps),
        "resident_bytes": {"warm": resident[0], "end": resident[-1]},
        "growth_mb_per_min": linear_regression(seconds, resident).slope * 60 / 1e6,
    }


async def _client(server: Server, number: int, end: float, gaps: list[float]) -> list[str]:
    """What went wrong in each of its calls: "" if nothing."""
    calls = []
    while perf_counter() < end:
        try:
            stream = await begin(server, body(CLIENTS * len(calls) + number, TOKENS))
        except OSError as error:
            calls.append(str(error))
            continue
        await stream.has_ended.wait()
        gaps += stream.gaps()
        is_good = stream.status == 200 and stream.num_tokens == TOKENS
        calls.append("" if is_good else stream.content[-300:].decode(errors="replace"))
    return calls


async def _watch(server: Server, start: float, sizes: list[tuple[float, int]]) -> None:
    while True:
        await asyncio.sleep(SECONDS / 300)
        sizes.append((perf_counter() - start, server.resident_bytes))


async def _leave(server: Server) -> dict[str, Any]:
    """Clients that hang up behind their first token."""
    before = server.resident_bytes
    for first in range(0, LEAVING, LEAVING_AT_ONCE):
        several = range(first, first + LEAVING_AT_ONCE)
        streams = await asyncio.gather(*(begin(server, body(i, TOKENS)) for i in several))
        await asyncio.gather(*(stream.has_event.wait() for stream in streams))
        for stream in streams:
            stream.transport.abort()
    start = perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(QUIET_SECONDS):
            while await asyncio.to_thread(lambda: server.num_in_work):
                await asyncio.sleep(0.01)
    return {
        "clients": LEAVING,
        "still_in_work": server.num_in_work,
        "quiet_after_s": perf_counter() - start,
        "resident_growth_bytes": server.resident_bytes - before,
    }
