"""What the server does with replicas, without Ray: orders out, steps in, and deaths in between."""

from __future__ import annotations

import asyncio
import itertools
import pickle
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import replace

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

import httpx2
import torch

import openglm
from helpers_serve import serving
from openglm.engine.embedding import mean_state
from openglm.engine.reading import Reading, prompt_scores
from openglm.engine.writer import Asked
from openglm.errors import ConfigError, NumericalError, RequestError, UsageError
from openglm.serve.model_table import ModelTable
from openglm.serve.replicas.cluster import LOCAL, QUIET, Scale, cluster
from openglm.serve.replicas.engine import MOST_DEATHS, RemoteModel
from openglm.serve.replicas.models import replicated_models
from openglm.serve.replicas.orders import Line, Order, Parcel, ReplicaDied
from openglm.serve.replicas.replica import Replica, Source
from openglm.serve.runner import EngineFailed, EngineRunner, Place

SAMPLING = {"temperature": 0.9, "seed": 7, "max_tokens": 12, "min_tokens": 12}
SMALL = {"memory_bytes": 8 << 20}
PLACE = Place(tenant="ann")


@pytest.fixture(scope="module")
def local():
    return openglm.load()


@pytest.fixture
def replica() -> Replica:
    return Replica(Source(model="mini", engine=SMALL))


def remote(replica: Replica, line: Line | None = None) -> RemoteModel:
    """What stands for the model in a server."""
    line = line or replica.work

    async def wire(order: Order) -> AsyncGenerator[Parcel, None]:
        """Another process sees copies only."""
        async with aclosing(line(pickle.loads(pickle.dumps(order)))) as parcels:
            async for parcel in parcels:
                yield pickle.loads(pickle.dumps(parcel))

    return RemoteModel("mini", replica.describe(), openglm.load().tokenizer, wire)


def written(model: RemoteModel, replica: Replica, asked: Asked) -> list[int]:
    """The tokens that come for a request."""

    async def write() -> list[int]:
        runner = EngineRunner(model.engine(**SMALL))
        try:
            async with aclosing(runner.write(asked, PLACE)) as steps:
                return [step.token async for step in steps if step.token is not None]
        finally:
            await runner.close()
            await replica.close()

    return asyncio.run(write())


def read(model: RemoteModel, replica: Replica, reading: Reading) -> Reading:
    """The reading, once it was read."""

    async def read_() -> Reading:
        runner = EngineRunner(model.engine(**SMALL))
        try:
            assert await runner.read(reading, PLACE) == "stop"
            return reading
        finally:
            await runner.close()
            await replica.close()

    return asyncio.run(read_())


def tokens_of(model: openglm.LanguageModel, prompt: str) -> list[int]:
    """The same without replicas."""
    engine = model.engine(**SMALL)
    request = engine.add(*model.request(prompt, **SAMPLING))
    while engine.has_work:
        engine.step()
    return request.blank()


def dying(replica: Replica, parcels_each: Iterator[int]) -> Line:
    """A line on which each replica dies behind so many parcels."""

    async def line(order: Order) -> AsyncGenerator[Parcel, None]:
        left = next(parcels_each)
        async with aclosing(replica.work(order)) as parcels:
            async for parcel in parcels:
                if not left:
                    raise ReplicaDied("it was killed")
                left -= 1
                yield parcel

    return line


def test_what_replicas_write(local, replica):
    """A model behind replicas writes something else than the same model here."""
    asked = remote(replica).request("The river", **SAMPLING)
    assert written(remote(replica), replica, asked) == tokens_of(local, "The river")


@pytest.mark.parametrize("parcels", [0, 1, 5])
def test_a_replica_that_dies(local, replica, parcels):
    """A request is lost with its replica, or the client reads a part of it twice."""
    line = dying(replica, iter([parcels, parcels + 2, 10**6]))
    model = remote(replica, line)
    asked = model.request("The river", **SAMPLING)
    assert written(model, replica, asked) == tokens_of(local, "The river")


@pytest.mark.parametrize("parcels", [0, 1])
def test_what_replicas_read(local, replica, parcels):
    """Vectors and scores of replicas are others than those of the model, or none."""
    ids = local.tokenizer.encode("The river runs to the sea.")
    model = remote(replica, dying(replica, iter([parcels, 10**6, parcels, 10**6])))
    vector = read(model, replica, mean_state(local.tokenizer, local.config, "The river")).vector
    assert torch.equal(vector, local.embed(["The river"])[0])
    replica._runner = None  # of the event loop that has ended
    scores = prompt_scores(local.tokenizer, local.config, ids, 2)
    engine = local.engine(**SMALL)
    engine.add_reading(expected := prompt_scores(local.tokenizer, local.config, ids, 2))
    while engine.has_work:
        engine.step()
    assert read(model, replica, scores).steps == expected.steps


def test_a_reading_without_numbers(local, replica):
    """An overflow of one text is taken for the death of a replica."""
    reading = mean_state(local.tokenizer, local.config, "The river")
    reading.problem = NumericalError("no numbers")
    with pytest.raises(NumericalError, match="no numbers"):
        read(remote(replica), replica, reading)


def test_replicas_that_keep_dying(replica):
    """A request that kills replicas kills all of them, one after the other."""
    begun = itertools.count()
    model = remote(replica, dying(replica, (0 * next(begun) for _ in itertools.count())))
    asked = model.request("The river", **SAMPLING)
    with pytest.raises(EngineFailed, match=f"{MOST_DEATHS} replicas"):
        written(model, replica, asked)
    assert next(begun) == MOST_DEATHS


def test_a_replica_that_writes_something_else(replica):
    """A stream goes on with the words of another answer."""

    async def line(order: Order) -> AsyncGenerator[Parcel, None]:
        params = next(every)
        async with aclosing(
            replica.work(replace(order, work=replace(order.work, params=params)))
        ) as parcels:
            async for parcel in parcels:
                yield parcel
                if params.seed == 1:
                    raise ReplicaDied("it was killed")

    model = remote(replica, line)
    one, two = (model.request("The river", **SAMPLING | {"seed": seed}) for seed in (1, 2))
    every = iter([one.params, two.params])
    with pytest.raises(EngineFailed, match="not write the same"):
        written(model, replica, one)


def test_what_a_request_does_wrong(replica):
    """An error of one request is taken for the death of a replica, or its words are lost."""

    async def line(order: Order) -> AsyncGenerator[Parcel, None]:
        error = pickle.loads(pickle.dumps(RequestError("no token is left", hint="allow some")))
        yield replica._parcel([], error=error)

    model = remote(replica, line)
    with pytest.raises(RequestError, match=r"no token is left \(allow some\)"):
        written(model, replica, model.request("The river", **SAMPLING))


def test_who_stops_listening(replica):
    """A replica goes on writing for somebody who has left."""
    closed = asyncio.Event()

    async def line(order: Order) -> AsyncGenerator[Parcel, None]:
        try:
            async with aclosing(replica.work(order)) as parcels:
                async for parcel in parcels:
                    yield parcel
        finally:
            closed.set()

    model = remote(replica, line)
    asked = model.request("The river", **SAMPLING | {"max_tokens": 200, "min_tokens": 200})

    async def leave() -> None:
        engine = model.engine(**SMALL)
        runner = EngineRunner(engine)
        async with aclosing(runner.write(asked, PLACE)) as steps:
            await anext(steps)
        await asyncio.wait_for(closed.wait(), 5)
        while engine.has_work or replica._engine.has_work:
            await asyncio.sleep(0.01)
        await runner.close()
        await replica.close()

    asyncio.run(asyncio.wait_for(leave(), 10))


def test_a_deadline_without_replicas(replica):
    """A request waits for ever when no replica takes it."""

    async def line(order: Order) -> AsyncGenerator[Parcel, None]:
        await asyncio.sleep(3600)
        yield replica._parcel([])

    model = remote(replica, line)

    async def write() -> str | None:
        engine = model.engine(**SMALL)
        runner = EngineRunner(engine)
        place = Place(deadline=engine.clock() - 60)
        async with aclosing(runner.write(model.request("x", **SAMPLING), place)) as steps:
            reasons = [step.finish_reason async for step in steps]
        await runner.close()
        return reasons[-1]

    assert asyncio.run(write()) == "deadline"


def test_how_many_replicas():
    """A slip in the range starts another number of replicas."""
    assert Scale.parse("2") == Scale(2, 2)
    assert Scale.parse("1-16") == Scale(1, 16)
    for text in ("", "0", "3-1", "1-", "-2", "2 ", "two", "1-2-3", "٣"):
        with pytest.raises(UsageError, match="a number or a range"):
            Scale.parse(text)


def test_replicas_are_there_from_the_start():
    """A model that shall wait for an admin takes its memory at once, or Ray starts in vain."""
    models = [ModelTable(source="mini"), ModelTable(source="mini", name="spare", load=False)]
    with pytest.raises(ConfigError, match=r"spare.*load = false.*--ray"):
        replicated_models(models, Scale(1, 1))


def test_replicas_belong_to_ray(monkeypatch):
    """An option is accepted and ignored, or a missing package ends in a traceback."""
    from typer.testing import CliRunner

    from openglm.cli.main import app

    found = CliRunner().invoke(app, ["serve", "--replicas", "2"])
    assert isinstance(found.exception, UsageError)
    assert "goes with --ray" in str(found.exception)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in (*QUIET, *LOCAL):
        monkeypatch.setenv(name, "0")
    with pytest.raises(UsageError, match=r"openglm\[ray\]"), cluster():
        pass


def test_requests_are_checked_in_front(replica):
    """What can never fit is found out behind the first word of the answer."""
    model = remote(replica)
    engine = model.engine(memory_bytes=1 << 20)
    with pytest.raises(RequestError, match="bytes of keys and values"):
        engine.check(model.request("The river", **SAMPLING | {"max_tokens": 200}))
    assert engine.cache.num_pages == replica.model.engine(memory_bytes=1 << 20).cache.num_pages


def test_a_server_with_replicas(local, replica):
    """Blanks, stop strings and bad words, whose rules are made at the replica, are lost."""
    with serving({"mini": remote(replica)}, engine=SMALL) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            text = "The [MASK] sat on the [MASK]."
            body = {"model": "mini", "text": text, "temperature": 0, "bad_words": ["the"]}
            found = client.post("/v1/fill", json=body).json()["choices"][0]["text"]
            assert found == local.fill(text, temperature=0, bad_words=["the"]).text
            body = {"model": "mini", "prompt": "The river", "max_tokens": 60, "temperature": 0}
            whole = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            stop = whole[20:23]
            cut = client.post("/v1/completions", json=body | {"stop": stop}).json()["choices"][0]
            assert cut["text"] == whole[: whole.index(stop)]
            assert cut["finish_reason"] == "stop"
            asked = {"model": "mini", "input": "The river"}
            (found,) = client.post("/v1/embeddings", json=asked).json()["data"]
            assert found["embedding"] == pytest.approx(local.embed(["The river"])[0].tolist())
            body |= {"max_tokens": 0, "echo": True, "logprobs": 1}
            (found,) = client.post("/v1/completions", json=body).json()["choices"]
            assert len(found["logprobs"]["token_logprobs"]) > 1
            metrics = client.get("/metrics").text
            assert 'openglm_engine_steps_total{model_name="mini"} 0.0' not in metrics
