"""Models come and go: who is answered meanwhile, what is refused, and that memory comes back."""

from __future__ import annotations

import asyncio
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

import openglm
from openglm import headroom
from openglm.errors import CheckpointError
from openglm.language_model import LanguageModel
from openglm.serve.background.errands import V4_CHAT, run
from openglm.serve.errors import ServeError, UnknownModel
from openglm.serve.known import Known, NotLoaded
from openglm.serve.model_table import ModelTable
from openglm.serve.models import Models
from openglm.serve.runner import EngineFailed, Place
from openglm.serve.status import ready

SMALL = {"memory_bytes": 1 << 24}


class Reader:
    """Reads mini, when it may, and remembers what it gave without keeping it."""

    def __init__(self) -> None:
        self.may = threading.Event()
        self.may.set()
        self.given: list[weakref.ref[Any]] = []
        self.error: Exception | None = None

    def __call__(self) -> LanguageModel:
        assert self.may.wait(30)
        if self.error is not None:
            raise self.error
        model = openglm.load("mini", device="cpu")
        self.given += [weakref.ref(model.network), weakref.ref(next(model.network.parameters()))]
        return model


@pytest.fixture
def reader() -> Reader:
    return Reader()


def _with_models(reader: Reader, work: Callable[[Models], Coroutine[Any, Any, None]]) -> None:
    """Does some work with two models, "first" and "second", of which only the first is loaded."""

    async def run() -> None:
        first = openglm.load("mini", device="cpu")
        known = [
            Known(name="first", read=lambda: first, engine=SMALL),
            Known(name="second", read=reader, engine=SMALL, loads_at_start=False),
        ]
        models = Models({one.name: one for one in known}, {"alias": "second"})
        await models.start()
        try:
            await work(models)
        finally:
            await models.close()

    asyncio.run(run())


async def _ask(models: Models, name: str) -> str:
    hosted = models.find(name)
    sampling = {"max_tokens": 6, "temperature": 0}
    writing = await hosted.prepare(["The river"], "generate", sampling, place=Place())
    return "".join([part.text async for part in writing.parts()])


def test_others_answer_while_one_is_loaded(reader: Reader) -> None:
    """The server stands still while a model is read, or reads it twice."""

    async def work(models: Models) -> None:
        expected = await _ask(models, "first")
        reader.may.clear()
        loading = [asyncio.create_task(models.load(name)) for name in ("second", "alias")]
        await asyncio.sleep(0)
        with pytest.raises(NotLoaded, match="is being loaded") as refused:
            models.find("alias")
        assert refused.value.retry_after
        with pytest.raises(NotLoaded, match="is being loaded"):
            await models.unload("second")
        assert await _ask(models, "first") == expected
        assert list(models.hosted) == ["first"]
        reader.may.set()
        await asyncio.gather(*loading)
        assert len(reader.given) == 2  # a network and a parameter of it: read once
        assert await _ask(models, "alias") == expected
        assert list(models.hosted) == list(models.statistics()) == ["first", "second"]

    _with_models(reader, work)


def test_a_model_that_nobody_waits_for_is_loaded_all_the_same(reader: Reader) -> None:
    """A proxy that closes a connection after a minute makes large models impossible to load."""

    async def work(models: Models) -> None:
        reader.may.clear()
        loading = asyncio.create_task(models.load("second"))
        await asyncio.sleep(0)
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
        reader.may.set()
        await models.load("second")
        assert len(reader.given) == 2
        assert models.find("second")

    _with_models(reader, work)


def test_memory_comes_back(reader: Reader) -> None:
    """A model that was unloaded, or a call that it answered, keeps its weights."""

    async def work(models: Models) -> None:
        for _ in range(2):
            await models.load("second")
            await _ask(models, "second")
            network, parameter = reader.given[-2:]
            assert network() is not None
            assert parameter() is not None
            await models.unload("second")
            assert network() is None
            assert parameter() is None
            with pytest.raises(NotLoaded, match="is not loaded") as refused:
                models.find("second")
            assert refused.value.retry_after is None
            assert list(models.statistics()) == ["first"]
            assert (await models.unload("second")).state == "unloaded"

    _with_models(reader, work)


def test_calls_end_before_a_model_goes(reader: Reader) -> None:
    """An answer is cut in the middle, or new ones keep the model for ever."""

    async def work(models: Models) -> None:
        await models.load("second")
        hosted = models.find("second")
        hosted.enter()
        hosted.enter()
        unloading = asyncio.create_task(models.unload("second"))
        await asyncio.sleep(0.01)
        with pytest.raises(NotLoaded, match="is being unloaded"):
            models.find("second")
        with pytest.raises(NotLoaded, match="is being unloaded"):
            await models.load("second")
        hosted.leave()
        await asyncio.sleep(0.05)
        assert not unloading.done()
        hosted.leave()
        await unloading
        with pytest.raises(EngineFailed, match="unloaded"):  # found before, asked behind it
            async for _ in hosted.runner.write(hosted.model.request("a"), Place()):
                pass

    _with_models(reader, work)


def test_a_model_that_cannot_be_loaded(reader: Reader) -> None:
    """One failure makes a model unusable, or the admin does not learn why."""

    async def work(models: Models) -> None:
        reader.error = CheckpointError("a shard is missing")
        with pytest.raises(ServeError, match="second could not be loaded: a shard is missing"):
            await models.load("second")
        with pytest.raises(NotLoaded, match="is not loaded"):
            models.find("second")
        reader.error = None
        await models.load("second")
        assert models.find("second")

    _with_models(reader, work)


def test_nothing_is_read_that_does_not_fit(reader: Reader) -> None:
    """The system ends the server for want of memory, with all answers that it was at."""

    async def work(models: Models) -> None:
        def check() -> None:
            raise ServeError("unavailable", "no room")

        models.known["second"].check = check
        with pytest.raises(ServeError, match="no room"):
            await models.load("second")
        assert not reader.given
        assert await _ask(models, "first")

    _with_models(reader, work)


@pytest.mark.parametrize("name", ["third", "", "../mini", "/etc", "firs"])
def test_only_what_is_known_is_loaded(reader: Reader, name: str) -> None:
    """A client makes the server read a file of its choice."""

    async def work(models: Models) -> None:
        for change in (models.load, models.unload):
            with pytest.raises(UnknownModel):
                await change(name)
        assert not reader.given

    _with_models(reader, work)


def test_work_for_later_waits_for_its_model(reader: Reader) -> None:
    """All lines of a batch fail while its model is unloaded for a minute."""

    async def work(models: Models) -> None:
        service: Any = SimpleNamespace(models=models, metrics=SimpleNamespace(clock=time.monotonic))
        identity: Any = SimpleNamespace(key_id="a")
        body = {"model": "second", "messages": [{"role": "user", "content": "x"}]}
        with pytest.raises(EngineFailed, match="is not loaded"):
            await run(service, identity, V4_CHAT, body)
        status, _ = await run(service, identity, V4_CHAT, body | {"model": "third"})
        assert status == 400

    _with_models(reader, work)


@pytest.mark.parametrize("dtype", ["auto", "float32", "int8", "int4-g64"])
def test_the_memory_of_a_model_is_known_beforehand(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Models are refused that would fit, or not refused that do not."""
    table = ModelTable(source="mini", device="cpu", dtype=dtype, memory_gib=0.5)
    check = table.known().check
    model = openglm.load("mini", device="cpu", dtype=dtype)
    weights = sum(tensor.nbytes for tensor in model.network.state_dict().values())
    cache = 1 << 29
    monkeypatch.setattr(headroom, "available_bytes", lambda: cache + weights // 2)
    with pytest.raises(
        ServeError, match=r"'mini' takes 0\.\d GB of memory, and 0\.\d GB are free"
    ) as no:
        check()
    assert no.value.retry_after
    monkeypatch.setattr(headroom, "available_bytes", lambda: cache + 2 * weights + (64 << 20))
    check()
    monkeypatch.setattr(headroom, "available_bytes", lambda: None)  # the system does not say
    check()


def test_a_server_with_an_engine_that_stopped_says_when_to_ask_again() -> None:
    """Whoever watches over it asks without a pause, or never again."""
    broken = SimpleNamespace(runner=SimpleNamespace(failure=RuntimeError()))
    call = SimpleNamespace(models=SimpleNamespace(hosted={"mini": broken}))
    with pytest.raises(ServeError, match="the engine of mini stopped") as no:
        asyncio.run(ready(call))  # type: ignore[arg-type]
    assert no.value.retry_after


def test_a_cache_that_does_not_fit_is_only_warned_of_at_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that nobody uses yet does not start, for pages that may never be written to."""
    monkeypatch.setattr(headroom, "available_bytes", lambda: 1 << 29)
    known = ModelTable(source="mini", device="cpu", memory_gib=1.0).known()
    known.prepare()
    assert "'mini' takes" in caplog.text
    assert known.take() is not known.take()  # nothing is kept


def test_what_a_table_makes(tmp_path: Path) -> None:
    """A setting of a model has no effect."""
    table = ModelTable(source="mini", device="cpu", memory_gib=0.25, max_drafts=3, load=False)
    settled = table.settled(tmp_path, "models[0]")
    known = settled.known()
    assert not known.loads_at_start
    model = known.take()
    engine = model.engine(**known.engine)
    assert engine.cache.num_pages == (1 << 28) // engine.cache.page_bytes
    assert engine.max_drafts == 3
