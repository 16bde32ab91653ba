"""The work of a batch, with calls that a script answers: what interrupts it, and what is left."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.serve.background import batches
from openglm.serve.background.batch_calls import batch_object
from openglm.serve.database import Database
from openglm.serve.files import Files, FileSettings
from openglm.serve.jobs import LEASE_SECONDS, MOST_ATTEMPTS, Jobs, Outcome
from openglm.serve.keys import KeyStore
from openglm.serve.listing import Page
from openglm.serve.runner import EngineFailed
from openglm.serve.tables import Job
from openglm.serve.worker import GivenUp, Running

Answer = Callable[[str], Awaitable[tuple[int, dict[str, Any]]]]
"""The name of a line -> HTTP status and body."""


class Desk:
    """Batches over real files and jobs; `answer` is asked instead of a model."""

    def __init__(self, database: Database, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_800_000_000.0
        self.keys = KeyStore(database, folder / "serve.key")
        self.key_id = self.keys.create("ann").split(".")[0]
        self.files = Files(database, FileSettings(folder / "files", spare_bytes=0))
        self.jobs = Jobs(database, lambda: self.now)
        service: Any = SimpleNamespace(files=self.files, jobs=self.jobs)
        self.batches = batches.Batches(service, self.keys)
        self.asked: list[str] = []
        monkeypatch.setattr(batches, "run", self._run)
        monkeypatch.setattr(batches.time, "time", lambda: self.now)

    async def answer(self, name: str) -> tuple[int, dict[str, Any]]:
        return 200, {"said": name}

    async def _run(self, service: Any, identity: Any, endpoint: Any, body: Any) -> Any:
        self.asked.append(body["name"])
        return await self.answer(body["name"])

    def add(self, count: int, *, deletes: bool = False) -> str:
        url = "/v1/chat/completions"
        every = [
            {"custom_id": f"c{i}", "url": url, "body": {"name": f"c{i}"}} for i in range(count)
        ]
        content = "\n".join(map(json.dumps, every)).encode()
        file = self.files.add(self.key_id, "lines.jsonl", "batch", [content])
        body = {"endpoint": url, "input_file_id": file.id, "metadata": None}
        body |= {"auto_delete_input_file": deletes}
        job = Job(id=f"batch_{'0' * 32}", key_id=self.key_id, kind="batch", body=body)
        job.input_id = file.id
        return self.jobs.add(job).id

    def claim(self) -> Running:
        job = self.jobs.claim("batch", "worker")
        assert job is not None
        return Running(job)

    def do(self, running: Running) -> dict[str, Any]:
        """Does the work, stores its end, and returns the batch with the lines of its files."""
        outcome: Outcome = asyncio.run(self.batches.work(running))
        self.jobs.finish(running.job, outcome)
        return self.read(running.job.id)

    def read(self, name: str) -> dict[str, Any]:
        found = batch_object(self.jobs.get("batch", self.key_id, name), self.jobs)
        for kind in ("output", "error"):
            if (file_id := found[f"{kind}_file_id"]) is not None:
                text = self.files.path(self.files.get(self.key_id, file_id)).read_text()
                found[kind] = [json.loads(line) for line in text.splitlines()]
        return found


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    database = Database(f"sqlite:///{tmp_path / 'serve.db'}")
    yield Desk(database, tmp_path, monkeypatch)
    database.close()


def names(lines: list[dict[str, Any]]) -> list[str]:
    return [line["custom_id"] for line in lines]


def test_a_batch(desk: Desk) -> None:
    """Answers come out in another order than the lines have, or files stay that nobody knows."""

    async def answer(name: str) -> tuple[int, dict[str, Any]]:
        await asyncio.sleep(0.02 * (name == "c0"))
        return (404 if name == "c2" else 200), {"said": name}

    desk.answer = answer  # type: ignore[method-assign]
    desk.add(12, deletes=True)
    found = desk.do(desk.claim())
    assert names(found["output"]) == [f"c{i}" for i in range(12) if i != 2]
    assert names(found["error"]) == ["c2"]
    assert found["request_counts"] == {"total": 12, "completed": 11, "failed": 1}
    rows, _ = desk.files.list(desk.key_id, Page())
    assert {row.id for row in rows} == {found["output_file_id"], found["error_file_id"]}
    assert {path.name for path in desk.files.folder.iterdir()} == {row.id for row in rows}


def test_two_batches_of_one_file(desk: Desk) -> None:
    """The first that ends removes the file from under the other."""
    first = desk.add(2, deletes=True)
    file_id = desk.jobs.get("batch", desk.key_id, first).input_id
    body = {"endpoint": "/v1/chat/completions", "input_file_id": file_id, "metadata": None}
    second = Job(id=f"batch_{'1' * 32}", key_id=desk.key_id, kind="batch")
    second.body, second.input_id = body | {"auto_delete_input_file": True}, file_id
    desk.jobs.add(second)
    for _ in range(2):
        assert file_id is not None
        assert desk.files.path(desk.files.get(desk.key_id, file_id)).exists()
        assert len(desk.do(desk.claim())["output"]) == 2
    rows, _ = desk.files.list(desk.key_id, Page())
    assert file_id not in {row.id for row in rows}
    assert {path.name for path in desk.files.folder.iterdir()} == {row.id for row in rows}


def test_a_batch_that_was_interrupted(desk: Desk) -> None:
    """Lines that were answered before a crash are answered again."""
    desk.add(5)
    first = desk.claim()
    desk.jobs.note(first.job, {"status": "in_progress", "total": 5})
    desk.jobs.answer(first.job, 2, True, json.dumps({"custom_id": "c1", "kept": True}))
    desk.now += LEASE_SECONDS
    found = desk.do(desk.claim())
    assert sorted(desk.asked) == ["c0", "c2", "c3", "c4"]
    assert names(found["output"]) == [f"c{i}" for i in range(5)]
    assert found["output"][1] == {"custom_id": "c1", "kept": True}


def test_an_engine_that_fails(desk: Desk) -> None:
    """Lines are answered with the engine's failure instead of waiting for another engine."""

    async def answer(name: str) -> tuple[int, dict[str, Any]]:
        if name == "c3":
            raise EngineFailed("gone")
        return 200, {}

    desk.answer = answer  # type: ignore[method-assign]
    desk.add(5)
    running = desk.claim()
    with pytest.raises(EngineFailed):
        asyncio.run(desk.batches.work(running))
    assert 4 not in desk.jobs.answered(running.job)
    assert desk.read(running.job.id)["status"] == "in_progress"


def test_a_key_that_is_revoked(desk: Desk) -> None:
    """What a key asked for is answered after it was revoked."""

    async def answer(name: str) -> tuple[int, dict[str, Any]]:
        desk.keys.revoke(desk.key_id)
        return 200, {}

    desk.answer = answer  # type: ignore[method-assign]
    desk.add(30)
    found = desk.do(desk.claim())
    assert len(desk.asked) <= batches.LINES_AT_ONCE
    refused = {line["response"]["status_code"] for line in found["error"]}
    assert refused == {401}
    assert found["request_counts"]["failed"] == 30 - len(desk.asked)


def test_a_batch_that_kills_its_server(desk: Desk) -> None:
    """It kills each server that is started; or what was answered is lost when it is given up."""
    desk.add(3)
    running = desk.claim()
    desk.jobs.note(running.job, {"status": "in_progress", "total": 3})
    desk.jobs.answer(running.job, 1, True, json.dumps({"custom_id": "c0"}))
    for _ in range(MOST_ATTEMPTS + 1):
        desk.now += LEASE_SECONDS
        running = desk.claim()
    found = desk.do(running)
    assert desk.asked == []
    assert found["status"] == "failed"
    assert names(found["output"]) == ["c0"]
    assert names(found["error"]) == ["c1", "c2"]
    assert found["errors"]["data"][0]["code"] == "batch_interrupted"


def test_a_file_that_kills_its_server(desk: Desk) -> None:
    """A file that cannot even be checked is checked again and again."""
    desk.add(3)
    for _ in range(MOST_ATTEMPTS + 1):
        running = desk.claim()
        desk.now += LEASE_SECONDS
    with pytest.raises(GivenUp):
        asyncio.run(desk.batches.work(running))


def test_cancelling_while_an_answer_is_stored(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line stands in both files: as answered, and as not."""
    begun, go_on = threading.Event(), threading.Event()
    store = desk.jobs.answer

    def slow(job: Job, line: int, is_good: bool, text: str) -> None:
        begun.set()
        go_on.wait(10)
        store(job, line, is_good, text)

    monkeypatch.setattr(desk.jobs, "answer", slow)
    desk.add(40)
    running = desk.claim()

    async def work() -> Outcome:
        working = asyncio.ensure_future(desk.batches.work(running))
        await asyncio.to_thread(begun.wait, 10)
        running.stop.set()
        await asyncio.sleep(0.05)
        go_on.set()
        return await working

    desk.jobs.finish(running.job, asyncio.run(work()))
    found = desk.read(running.job.id)
    assert found["status"] == "cancelled"
    assert found["output"]
    assert sorted(names(found["output"] + found["error"])) == sorted(f"c{i}" for i in range(40))
    assert len(desk.asked) <= batches.LINES_AT_ONCE
