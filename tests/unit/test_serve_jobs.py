"""Work that is done later: never lost, never finished twice, and ended when it is cancelled."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.serve import jobs as jobs_module
from openglm.serve import worker as worker_module
from openglm.serve.background.errands import find_endpoint
from openglm.serve.background.lines import MOST_LINES, MOST_PROBLEMS, check, lines
from openglm.serve.database import Database
from openglm.serve.errors import ServeError
from openglm.serve.jobs import KEEP_SECONDS, LEASE_SECONDS, MOST_ATTEMPTS, ClaimLost, Jobs, Outcome
from openglm.serve.listing import Page
from openglm.serve.runner import EngineFailed
from openglm.serve.tables import Job
from openglm.serve.wire import new_id
from openglm.serve.worker import Kind, Running, Worker

ANN, BOB = "a" * 32, "b" * 32
DONE = Outcome("completed", {"x": 1})


class Clock:
    """A clock that a test moves."""

    seconds = 1_800_000_000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def jobs(database: Database, clock: Clock) -> Jobs:
    return Jobs(database, clock)


def add(jobs: Jobs, key_id: str = ANN, kind: str = "batch", **body: Any) -> str:
    return jobs.add(Job(id=new_id("batch_"), key_id=key_id, kind=kind, body=body)).id


def claim(jobs: Jobs, worker: str = "one") -> Job:
    job = jobs.claim("batch", worker)
    assert job is not None
    return job


def test_a_job(jobs: Jobs) -> None:
    """What was accepted is lost, or belongs to two."""
    name = add(jobs, a=1)
    assert jobs.claim("chat", "one") is None
    job = claim(jobs)
    assert (job.id, job.status, job.body, job.attempts) == (name, "running", {"a": 1}, 1)
    assert jobs.claim("batch", "two") is None
    jobs.finish(job, DONE)
    found = jobs.get("batch", ANN, name)
    assert (found.status, found.result) == ("completed", {"x": 1})
    assert jobs.claim("batch", "two") is None
    with pytest.raises(ClaimLost):
        jobs.finish(job, Outcome("failed"))
    assert jobs.get("batch", ANN, name).status == "completed"


def test_jobs_that_are_alike(jobs: Jobs) -> None:
    """Two unfinished jobs have what only one may have, or what ended keeps it for ever."""

    def add_alike(number: int, key_id: str = ANN) -> None:
        body = {"text": "\x00 \ud800"}
        job = Job(id=f"async-same{number}", key_id=key_id, kind="batch", body=body)
        jobs.add(job, "async-same")

    add_alike(1)
    for _ in range(2):
        with pytest.raises(ServeError) as error:
            add_alike(2)
        assert error.value.kind == "duplicate"
    add_alike(3, BOB)
    job = claim(jobs)
    with pytest.raises(ServeError):
        add_alike(2)
    jobs.finish(job, DONE)
    add_alike(2)


def test_a_worker_that_died(jobs: Jobs, clock: Clock) -> None:
    """Its job waits for ever, or is done by two at once; or the dead one ends it after all."""
    name = add(jobs)
    dead = claim(jobs, "dead")
    clock.seconds += LEASE_SECONDS - 1
    assert jobs.claim("batch", "heir") is None
    assert jobs.renew("dead") == {name: False}
    clock.seconds += LEASE_SECONDS - 1
    assert jobs.claim("batch", "heir") is None
    clock.seconds += 1
    heir = claim(jobs, "heir")
    assert heir.attempts == 2
    assert jobs.renew("dead") == {}
    late: list[Callable[[], None]] = [
        lambda: jobs.answer(dead, 1, True, "late"),
        lambda: jobs.note(dead, {"late": 1}),
        lambda: jobs.put_back(dead),
        lambda: jobs.finish(dead, Outcome("failed")),
    ]
    for act in late:
        with pytest.raises(ClaimLost):
            act()
    assert jobs.answered(heir) == set()
    jobs.finish(heir, DONE)


def test_claims_of_many(database: Database) -> None:
    """Two workers take one job, or one is overlooked."""
    jobs = Jobs(database)
    names = {add(jobs, str(number % 3) * 32) for number in range(30)}

    def take(worker: int) -> list[str]:
        found = []
        while (job := jobs.claim("batch", str(worker))) is not None:
            found.append(job.id)
        return found

    with ThreadPoolExecutor(4) as pool:
        found = [name for some in pool.map(take, range(4)) for name in some]
    assert len(found) == 30
    assert set(found) == names


def test_a_worker_does_not_take_its_own_job(jobs: Jobs, clock: Clock) -> None:
    """Behind a pause of the machine a worker does what it is doing already a second time."""
    name = add(jobs)
    claim(jobs)
    clock.seconds += LEASE_SECONDS + 1
    assert jobs.claim("batch", "one", [name]) is None
    assert jobs.claim("batch", "two") is not None


def test_no_key_takes_all_places(jobs: Jobs) -> None:
    """A key with many jobs keeps all others waiting."""
    for _ in range(3):
        add(jobs)
    last = add(jobs, BOB)
    assert claim(jobs).key_id == ANN
    assert claim(jobs).id == last
    assert claim(jobs).key_id == ANN


def test_a_line_is_answered_once(jobs: Jobs, clock: Clock) -> None:
    """A line that was begun twice has two answers, or the second replaces the first."""
    add(jobs)
    job = claim(jobs)
    jobs.answer(job, 2, True, "second")
    jobs.answer(job, 1, False, "first")
    jobs.answer(job, 2, False, "again")
    assert list(jobs.answers(job)) == [(False, "first"), (True, "second")]
    assert jobs.answered(job) == {1, 2}
    assert jobs.count_answers(job) == (1, 1)


def test_what_ends_with_a_job(jobs: Jobs, database: Database) -> None:
    """The end is stored without what belongs to it."""
    name = add(jobs)
    job = claim(jobs)
    jobs.answer(job, 1, True, "x")

    def fail(session: Any) -> None:
        session.add(Job(id=name))  # there is one of that id
        session.flush()

    with pytest.raises(Exception, match=r"UNIQUE|NOT NULL"):
        jobs.finish(job, Outcome("completed", change=fail))
    assert jobs.get("batch", ANN, name).status == "running"
    assert jobs.answered(job) == {1}


def test_jobs_of_others(jobs: Jobs) -> None:
    """A key reads or cancels the job of another key, or one of another kind."""
    name = add(jobs)
    for kind, key_id in (("batch", BOB), ("chat", ANN)):
        with pytest.raises(ServeError):
            jobs.get(kind, key_id, name)
        with pytest.raises(ServeError):
            jobs.cancel(kind, key_id, name)
    assert jobs.list("batch", BOB, Page()) == ([], False)
    assert jobs.list("chat", ANN, Page()) == ([], False)


def test_cancelling(jobs: Jobs, clock: Clock) -> None:
    """A cancelled job begins all the same; or one that has answers loses them."""
    name = add(jobs)
    assert jobs.cancel("batch", ANN, name).status == "cancelled"
    assert jobs.claim("batch", "one") is None
    with pytest.raises(ServeError, match="it is cancelled"):
        jobs.cancel("batch", ANN, name)
    name = add(jobs)
    job = claim(jobs)
    jobs.note(job, {"total": 3})
    assert jobs.cancel("batch", ANN, name).status == "running"
    assert jobs.renew("one") == {name: True}
    jobs.put_back(job)
    assert claim(jobs).cancelling_at is not None  # its worker writes down what there is
    name = add(jobs)
    job = claim(jobs)
    jobs.note(job, {"total": 3})
    jobs.put_back(job)
    assert jobs.cancel("batch", ANN, name).status == "waiting"
    assert claim(jobs).id == name


def test_too_many_jobs(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key fills the database, or keeps others from adding."""
    monkeypatch.setattr(jobs_module, "MOST_OPEN", 2)
    add(jobs)
    add(jobs)
    with pytest.raises(ServeError) as error:
        add(jobs)
    assert error.value.kind == "queue"
    add(jobs, BOB)
    add(jobs, kind="chat")
    jobs.finish(claim(jobs), DONE)
    add(jobs)


def test_old_results_are_forgotten(jobs: Jobs, clock: Clock) -> None:
    """Results that nobody fetches stay for ever, or go before they are old."""
    name = add(jobs)
    jobs.finish(claim(jobs), DONE)
    waiting = add(jobs)
    clock.seconds += KEEP_SECONDS
    jobs.forget("batch")
    jobs.get("batch", ANN, name)
    clock.seconds += 1
    jobs.forget("chat")
    jobs.get("batch", ANN, name)
    jobs.forget("batch")
    with pytest.raises(ServeError):
        jobs.get("batch", ANN, name)
    jobs.get("batch", ANN, waiting)


# The worker

Work = Callable[[Running], Awaitable[Outcome]]


def started(jobs: Jobs, work: Work, at_once: int = 2) -> Worker:
    worker = Worker(jobs)
    worker.start({"batch": Kind(work, at_once, is_kept=False)})
    return worker


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def status(jobs: Jobs, name: str) -> str:
    return jobs.get("batch", ANN, name).status


def test_a_worker(database: Database) -> None:
    """A job is not begun although a place is free, or more are in work than may be."""
    jobs = Jobs(database)
    running, most = 0, 0

    async def work(job: Running) -> Outcome:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.1)
        running -= 1
        return DONE

    async def run() -> None:
        names = [add(jobs) for _ in range(5)]
        worker = started(jobs, work)
        await until(lambda: all(status(jobs, name) == "completed" for name in names))
        last = add(jobs)
        worker.wake()
        await until(lambda: status(jobs, last) == "completed")
        await worker.close()

    asyncio.run(run())
    assert most == 2


def test_closing_puts_jobs_back(database: Database) -> None:
    """A job that was in work when the server ended waits until its claim has run out."""
    jobs = Jobs(database)
    begun = asyncio.Event()

    async def work(job: Running) -> Outcome:
        begun.set()
        await asyncio.sleep(3600)
        return DONE

    async def run() -> None:
        name = add(jobs)
        worker = started(jobs, work)
        await begun.wait()
        await worker.close()
        assert status(jobs, name) == "waiting"

    asyncio.run(run())
    job = claim(jobs)
    assert job.attempts == 1  # the first did not count


def test_closing_at_once(database: Database) -> None:
    """A job that was claimed, and not yet begun, waits until its claim has run out."""
    jobs = Jobs(database)

    async def work(job: Running) -> Outcome:
        await asyncio.sleep(3600)
        return DONE

    async def run() -> None:
        names = [add(jobs) for _ in range(2)]
        worker = started(jobs, work)
        await until(lambda: len(worker._running) > 0)
        await worker.close()
        assert [status(jobs, name) for name in names] == ["waiting"] * 2

    asyncio.run(run())


def test_a_cancelled_job_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on: when this process cancelled it, or another did, or before it was begun."""
    jobs = Jobs(database)

    async def work(job: Running) -> Outcome:
        await asyncio.to_thread(jobs.note, job.job, {"begun": True})
        await job.stop.wait()
        return Outcome("cancelled")

    async def run() -> None:
        for tells in (True, False):
            monkeypatch.setattr(worker_module, "RENEW_SECONDS", 3600 if tells else 0.02)
            name = add(jobs)
            worker = started(jobs, work)
            await until(lambda name=name: jobs.get("batch", ANN, name).state is not None)  # type: ignore[misc]
            jobs.cancel("batch", ANN, name)
            if tells:
                worker.stop(name)
            await until(lambda name=name: status(jobs, name) == "cancelled")  # type: ignore[misc]
            await worker.close()

    asyncio.run(run())


def test_work_that_was_taken_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was silent for too long goes on beside its heir."""
    monkeypatch.setattr(worker_module, "RENEW_SECONDS", 0.02)
    jobs = Jobs(database)
    ended = asyncio.Event()

    async def work(job: Running) -> Outcome:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return DONE

    async def run() -> None:
        name = add(jobs)
        worker = started(jobs, work)
        await until(lambda: status(jobs, name) == "running")
        with database.writing() as session:
            session.query(Job).update({"worker": "heir"})
        await asyncio.wait_for(ended.wait(), 10)
        await worker.close()
        assert jobs.get("batch", ANN, name).worker == "heir"

    asyncio.run(run())


def test_work_that_fails(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    """An error is told with its inner words, tried for ever, or stops the worker."""
    jobs = Jobs(database)
    errors = {
        "bug": ZeroDivisionError("secret"), "told": ServeError("invalid", "too much"),
    }  # fmt: skip

    async def work(job: Running) -> Outcome:
        raise errors[job.job.body["error"]]

    async def run() -> None:
        names = {error: add(jobs, error=error) for error in errors}
        worker = started(jobs, work)
        await until(lambda: all(status(jobs, name) == "failed" for name in names.values()))
        await worker.close()
        found = {error: jobs.get("batch", ANN, name).error for error, name in names.items()}
        assert found["told"] == {"code": "1210", "message": "too much"}
        assert found["bug"] is not None
        assert "secret" not in found["bug"]["message"]

    with caplog.at_level(logging.CRITICAL, "openglm"):
        asyncio.run(run())


def test_an_engine_that_failed(database: Database, clock: Clock) -> None:
    """Jobs fail because the engine did, instead of waiting for another."""
    jobs = Jobs(database, clock)
    tries = 0

    async def work(job: Running) -> Outcome:
        nonlocal tries
        tries += 1
        if tries <= MOST_ATTEMPTS + 2:
            raise EngineFailed("gone")
        return DONE

    async def tried(name: str, count: int) -> None:
        # not before it is over: the clock would end the claim of one in work
        await until(lambda: tries == count and status(jobs, name) in ("waiting", "completed"))

    async def run() -> None:
        name = add(jobs)
        worker = started(jobs, work)
        for count in range(1, MOST_ATTEMPTS + 3):
            await tried(name, count)
            clock.seconds += LEASE_SECONDS
            worker.wake()
        await tried(name, MOST_ATTEMPTS + 3)
        assert status(jobs, name) == "completed"
        await worker.close()

    asyncio.run(run())


def test_a_job_that_kills_its_server(jobs: Jobs, clock: Clock) -> None:
    """It is begun for ever; or one is given up that has come forward between crashes."""
    add(jobs)
    for _ in range(MOST_ATTEMPTS):
        assert not Running(claim(jobs)).is_hopeless
        clock.seconds += LEASE_SECONDS
    job = claim(jobs)
    assert Running(job).is_hopeless
    jobs.answer(job, 1, True, "x")
    clock.seconds += LEASE_SECONDS
    assert not Running(claim(jobs)).is_hopeless


# Lines of a batch

GOOD = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}


def problems(tmp_path: Path, *raw: str | dict[str, Any]) -> list[dict[str, Any]]:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in raw), "utf-8")
    return check(path, find_endpoint("/v1/chat/completions"))[0]


@pytest.mark.parametrize(
    ("line", "param", "said"),
    [
        ("{", None, "no JSON"),
        ("[" * 10**5, None, "no JSON"),
        ("1" * 5000, None, "no JSON"),
        ("[]", None, "no JSON object"),
        (GOOD | {"custom_id": 1}, "custom_id", "text"),
        (GOOD | {"custom_id": ""}, "custom_id", "text"),
        (GOOD | {"custom_id": "x" * 300}, "custom_id", "256"),
        (GOOD, "custom_id", "given before"),
        (GOOD | {"method": "GET"}, "method", "POST"),
        (GOOD | {"body": []}, "body", "object"),
        (GOOD | {"custom_id": "b", "url": "/v1/completions"}, "url", "chat/completions"),
        (GOOD | {"url": "/v1/chat"}, "url", "no endpoint"),
        (GOOD | {"url": ["/v1/chat/completions"]}, "url", "no endpoint"),
        (GOOD | {"url": "http://127.0.0.1/v1/chat/completions"}, "url", "no endpoint"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_line_that_is_none(
    tmp_path: Path, line: str | dict[str, Any], param: str | None, said: str
) -> None:
    """A batch begins although a line of it cannot be answered, or the message names another."""
    (found,) = problems(tmp_path, GOOD, "", line)
    assert (found["line"], found["param"]) == (3, param)
    assert said in found["message"]


def test_lines_of_both_dialects(tmp_path: Path) -> None:
    """Files that were written for BigModel are refused."""
    both = [GOOD, "  ", GOOD | {"custom_id": "b", "url": "/v4/chat/completions"}]
    assert problems(tmp_path, *both) == []
    found = list(lines(tmp_path / "lines.jsonl"))
    assert [(line.number, line.custom_id) for line in found] == [(1, "a"), (3, "b")]
    assert [line.endpoint.is_bigmodel for line in found] == [False, True]
    assert [line.number for line in lines(tmp_path / "lines.jsonl", {1})] == [3]


def test_files_of_too_many_lines_or_none(tmp_path: Path) -> None:
    """A file without end is checked to its end, or an empty one is a batch."""
    (found,) = problems(tmp_path, "", " ")
    assert "no lines" in found["message"]
    assert len(problems(tmp_path, *["{"] * (MOST_PROBLEMS + 50))) == MOST_PROBLEMS
    many = [GOOD | {"custom_id": str(number)} for number in range(MOST_LINES + 1)]
    (found,) = problems(tmp_path, *many)
    assert str(MOST_LINES) in found["message"]
