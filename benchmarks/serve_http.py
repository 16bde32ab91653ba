"""Claim: serving costs little: of the engine's own speed 0.9 and more comes out of the HTTP API.

A `glm serve mini` process on loopback and the model's engine in this process answer the same
requests in turn. Server and clients share the cores, so what a client costs counts against the
server. For the overload the engine has room for some requests only, and the queue for 256.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from time import perf_counter, process_time
from typing import Any

import openglm
from benchmarks.record import spread
from benchmarks.serving import Server, Stream, begin, body, percentiles, serving, whole
from openglm.engine.engine import Engine, memory_for
from openglm.language_model import LanguageModel

CLIENTS, TOKENS, ROUNDS = 16, 200, 7
FIRSTS = 40
CROWD = 256
"""With the clients that were there before, a few more than the queue takes."""
WINDOW_SECONDS, PROBE_SECONDS = 12.0, 0.02


def measure() -> dict[str, Any]:
    """Throughput, time to the first token, and what happens when too many come."""
    model = openglm.load("mini")
    asked = [_request(model, number, TOKENS) for number in range(CLIENTS)]
    room = memory_for(model.network, asked) / (1 << 30)
    with serving() as server:
        engine = model.engine()
        throughput = _throughput(model, engine, server)
        first_token = _first_token(model, engine, server)
    with serving("--memory", str(room)) as server:
        overload = asyncio.run(_overload(server))
    return {
        "model": "mini",
        "clients": CLIENTS,
        "tokens_each": TOKENS,
        "throughput": throughput,
        "first_token": first_token,
        "overload": overload,
    }


def _request(model: LanguageModel, number: int, tokens: int) -> Any:
    """What `body` asks for, as the engine takes it."""
    sampling = body(number, tokens)
    prompt = sampling.pop("prompt")
    del sampling["model"]
    return model.request(prompt, "generate", **sampling)


def _throughput(model: LanguageModel, engine: Engine, server: Server) -> dict[str, Any]:
    """Tokens/s of both, and the processor time that server and clients spend on HTTP."""
    count = CLIENTS * TOKENS
    thread = ThreadPoolExecutor(1)  # as in the server: torch is faster there than in the first one
    own, through, loop, clients = [], [], [], []
    for _ in range(1 + ROUNDS):
        own.append(count / thread.submit(_write, model, engine).result())
        used, spent, start = server.loop_seconds, process_time(), perf_counter()
        streams = asyncio.run(whole(server, [body(i, TOKENS) for i in range(CLIENTS)]))
        through.append(count / (perf_counter() - start))
        loop.append((server.loop_seconds - used) / count)
        clients.append((process_time() - spent) / count)
        assert sum(stream.num_tokens for stream in streams) == count
    rounds = slice(1, None)  # the first one warms up
    return {
        "engine_tokens_per_s": spread(own[rounds]),
        "http_tokens_per_s": spread(through[rounds]),
        "ratio": spread([b / a for a, b in zip(own, through, strict=True)][rounds]),
        "server_loop_s_per_token": spread(loop[rounds]),
        "client_s_per_token": spread(clients[rounds]),
    }


def _write(model: LanguageModel, engine: Engine) -> float:
    """Seconds in which the engine alone answers all clients."""
    requests = [_request(model, number, TOKENS) for number in range(CLIENTS)]
    start = perf_counter()
    for one in requests:
        engine.add(*one)
    while engine.has_work:
        engine.step()
    return perf_counter() - start


def _first_token(model: LanguageModel, engine: Engine, server: Server) -> dict[str, Any]:
    """Seconds to the first token, one request at a time."""
    own, through = [], []
    for number in range(1 + FIRSTS):
        one = _request(model, number, 1)
        start = perf_counter()
        request = engine.add(*one)
        while not request.steps:
            engine.step()
        own.append(perf_counter() - start)
        while engine.has_work:
            engine.step()
        (stream,) = asyncio.run(whole(server, [body(number, 1)]))
        through.append(stream.arrivals[0] - stream.begun)
    return {"engine_s": spread(own[1:]), "http_s": spread(through[1:])}


async def _overload(server: Server) -> dict[str, Any]:
    """The pace of streams with a full engine, then with a full queue and refused calls, too."""
    streams: list[Stream] = []
    workers = [asyncio.create_task(_call(server, i, streams)) for i in range(2 * CLIENTS)]
    try:
        await asyncio.sleep(WINDOW_SECONDS / 4)
        start = perf_counter()
        await asyncio.sleep(WINDOW_SECONDS)
        before = [gap for stream in streams for gap in stream.gaps(start)]
        workers += [asyncio.create_task(_call(server, i, streams)) for i in range(CROWD)]
        while (await _probe(server, streams)).status != 429:
            await asyncio.sleep(PROBE_SECONDS)
        start, refusals = perf_counter(), []
        while perf_counter() < start + WINDOW_SECONDS:
            stream = await _probe(server, streams)
            if stream.status == 429:
                refusals.append(stream.answered - stream.begun)
            await asyncio.sleep(PROBE_SECONDS)
        during = [gap for stream in streams for gap in stream.gaps(start)]
    finally:
        for worker in workers:
            worker.cancel()
        for stream in streams:
            stream.transport.abort()
    return {
        "num_refused": len(refusals),
        "refused_after_s": percentiles(refusals),
        "gap_before_s": percentiles(before),
        "gap_during_s": percentiles(during),
    }


async def _call(server: Server, number: int, streams: list[Stream]) -> None:
    """One call behind the other, for ever; a refused one comes again after a second."""
    while True:
        with suppress(OSError):
            stream = await begin(server, body(number, TOKENS))
            streams.append(stream)
            await stream.has_ended.wait()
            if stream.status == 200:
                continue
        await asyncio.sleep(1.0)


async def _probe(server: Server, streams: list[Stream]) -> Stream:
    """A call that is one too many; if there was a place after all, it stays."""
    stream = await begin(server, body(0, TOKENS))
    streams.append(stream)
    with suppress(TimeoutError):
        await asyncio.wait_for(stream.has_answer.wait(), 1.0)
    return stream
