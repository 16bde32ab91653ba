"""How much keys may ask for, and that every place which was taken is given back."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sqlalchemy", reason="the server is an extra: '.[serve]'")

from openglm.serve import limits as limits_module
from openglm.serve.database import Database
from openglm.serve.identity import Identity
from openglm.serve.limits import Admission, LimitReached, Limits, LimitSettings
from openglm.serve.usage import Count, add_usage, read_usage

NOON = 1_800_014_400.0  # 2027-01-15 12:00 UTC
DAY = datetime.date(2027, 1, 15)
ANN = Identity("a" * 32, "ann", "user")
BOB = Identity("b" * 32, "bob", "user", requests_per_minute=2, concurrency=1, tokens_per_day=100)


class Clock:
    """A clock that a test moves."""

    seconds = NOON

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


Make = Callable[..., Limits]


@pytest.fixture
def make(database: Database, clock: Clock) -> Make:
    def make(**settings: Any) -> Limits:
        return Limits(database, LimitSettings(**settings), clock, clock)

    return make


def _run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def _refused(limits: Limits, who: Identity, tokens: int = 1) -> tuple[str, int, int]:
    with pytest.raises(LimitReached) as reached:
        await limits.admit(who, tokens)
    return reached.value.kind, reached.value.limit, reached.value.retry_after


def test_defaults() -> None:
    """The server ships with other limits than its documentation says."""
    assert LimitSettings() == LimitSettings(60, 4, None, 256)


def test_concurrency(make: Make) -> None:
    """One key takes all places, or a place is lost when a request ends or fails."""

    async def work() -> None:
        limits = make(concurrency=2)
        first = await limits.admit(ANN, 1)
        with await limits.admit(ANN, 1):
            assert await _refused(limits, ANN) == ("concurrency", 2, 1)
            with await limits.admit(BOB, 1):
                assert await _refused(limits, BOB) == ("concurrency", 1, 1)
        with pytest.raises(RuntimeError), await limits.admit(ANN, 1):
            raise RuntimeError
        assert limits.active(ANN.key_id) == 1
        first.close()
        first.close()  # a second time it would give back the place of another
        assert limits.active(ANN.key_id) == limits.waiting == 0
        await limits.close()

    _run(work())


def test_a_cancelled_request_gives_back_its_place(make: Make) -> None:
    """After some disconnects a key is locked out until the server restarts."""

    async def work() -> None:
        limits = make(concurrency=1)
        for _ in range(3):
            entered = asyncio.Event()

            async def request(entered: asyncio.Event = entered) -> None:
                with await limits.admit(ANN, 10) as admission:
                    admission.spent(3, 4)
                    entered.set()
                    await asyncio.sleep(3600)

            task = asyncio.create_task(request())
            await entered.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert limits.active(ANN.key_id) == limits.waiting == 0
        await limits.close()
        assert read_usage(limits._database, (ANN.key_id, DAY)) == Count(9, 12, 3)

    _run(work())


def test_queue(make: Make) -> None:
    """Requests pile up without end, or those that run count as waiting."""

    async def work() -> None:
        limits = make(queue=2)
        first, second = await limits.admit(ANN, 1), await limits.admit(ANN, 1)
        assert await _refused(limits, BOB) == ("queue", 2, 1)
        first.start()
        first.start()
        assert limits.waiting == 1
        third = await limits.admit(BOB, 1)
        for admission in (first, second, third):
            admission.close()
        assert limits.waiting == 0
        await limits.close()

    _run(work())


def test_rate(make: Make, clock: Clock) -> None:
    """A key sends more than its requests a minute, or is refused after waiting as it was told."""

    async def work() -> None:
        limits = make()
        (await limits.admit(BOB, 1)).close()
        clock.seconds += 20
        (await limits.admit(BOB, 1)).close()
        assert await _refused(limits, BOB) == ("rate", 2, 40)
        (await limits.admit(ANN, 1)).close()
        clock.seconds += 39.5
        assert await _refused(limits, BOB) == ("rate", 2, 1)
        clock.seconds += 0.5
        (await limits.admit(BOB, 1)).close()
        assert await _refused(limits, BOB) == ("rate", 2, 20)
        await limits.close()

    _run(work())


def test_refused_requests_do_not_count(make: Make, clock: Clock) -> None:
    """A client that asks again too early is never let in."""

    async def work() -> None:
        limits = make(requests_per_minute=2, concurrency=1)
        first = await limits.admit(ANN, 1)
        for _ in range(5):
            assert (await _refused(limits, ANN))[0] == "concurrency"
        first.close()
        (await limits.admit(ANN, 1)).close()
        assert (await _refused(limits, ANN))[0] == "rate"
        await limits.close()

    _run(work())


def test_a_lower_rate_of_a_changed_key(make: Make, clock: Clock) -> None:
    """After a limit was lowered the wait that is told is wrong."""

    async def work() -> None:
        limits = make()
        for _ in range(4):
            (await limits.admit(ANN, 1)).close()
            clock.seconds += 10
        lower = Identity(ANN.key_id, "ann", "user", requests_per_minute=2)
        assert await _refused(limits, lower) == ("rate", 2, 40)  # the third left at 12:00:20 + 60
        clock.seconds += 40
        (await limits.admit(lower, 1)).close()
        await limits.close()

    _run(work())


def test_tokens_of_a_day(make: Make, clock: Clock) -> None:
    """Requests at once use more than the day has; or unused reservations are never given back."""

    async def work() -> None:
        limits = make(concurrency=9)
        who = Identity("c" * 32, "c", "user", tokens_per_day=100)
        with await limits.admit(who, 60) as first:
            assert await _refused(limits, who, 41) == ("tokens", 100, 1)
            second = await limits.admit(who, 40)
            first.spent(1, 1)
            first.spent(10, 20)
        second.close()
        assert await _refused(limits, who, 71) == ("tokens", 100, 12 * 3600)
        (await limits.admit(who, 70)).close()
        assert await _refused(limits, who, 101) == ("tokens", 100, 12 * 3600)
        (await limits.admit(ANN, 10**12)).close()  # no limit of its own, and none of the server
        await limits.close()

    _run(work())


def test_more_is_known_of_a_request_that_was_let_in(make: Make, clock: Clock) -> None:
    """A prompt is read that the day has no tokens for; or who is refused for it cannot tell why."""

    async def work() -> None:
        limits = make(concurrency=9)
        who = Identity("c" * 32, "c", "user", tokens_per_day=100)
        with await limits.admit(who, 1) as first:
            first.spent(10, 20)
        with await limits.admit(who, 1) as first, await limits.admit(who, 1) as second:
            assert first.left == second.left == 70  # what others may not need is no use of them
            first.reserve(60)
            first.reserve(50)  # in all, not besides
            with pytest.raises(LimitReached, match=r"70 .*may use 71.*max_tokens") as reached:
                second.reserve(71)
            assert (reached.value.kind, reached.value.retry_after) == ("tokens", 12 * 3600)
            with pytest.raises(LimitReached, match="its other calls") as reached:
                second.reserve(21)
            assert reached.value.retry_after == 1  # as soon as the first is done
            second.reserve(20)
        with await limits.admit(who, 70):
            assert await _refused(limits, who) == ("tokens", 100, 1)
            (await limits.admit(who, 0)).close()  # what uses none needs none
        with await limits.admit(ANN, 1) as boundless:
            assert boundless.left is None
            boundless.reserve(10**12)
        assert limits.active(who.key_id) == limits.waiting == 0
        await limits.close()
        used = read_usage(limits._database, (who.key_id, DAY))
        assert used == Count(10, 20, 4)  # the second was refused, and then not

    _run(work())


def test_what_nobody_waits_for(make: Make, clock: Clock, database: Database) -> None:
    """A batch keeps its owner from calling, or uses tokens that nobody counts."""

    async def work() -> None:
        limits = make(queue=1)
        who = Identity("c" * 32, "c", "user", 1, 1, tokens_per_day=100)
        later = [await limits.admit_later(who, 20) for _ in range(4)]
        assert limits.waiting == limits.active(who.key_id) == 0
        with await limits.admit(who, 20):
            with pytest.raises(LimitReached) as reached:
                await limits.admit_later(who, 1)
            assert reached.value.kind == "tokens"
        for admission in later:
            admission.spent(3, 4)
            admission.close()
        (await limits.admit_later(who, 72)).close()
        await limits.close()
        assert read_usage(database, (who.key_id, DAY)) == Count(12, 16, 6)

    _run(work())


def test_the_first_requests_of_a_day_come_together(make: Make) -> None:
    """Each begins the day anew, and what the other reserved is forgotten."""

    async def work() -> None:
        limits = make()
        who = Identity("c" * 32, "c", "user", tokens_per_day=100)
        first, second = (limits.admit(who, 60) for _ in range(2))
        both = await asyncio.gather(first, second, return_exceptions=True)
        assert {type(found) for found in both} == {Admission, LimitReached}
        await limits.close()

    _run(work())


def test_days_end_at_midnight(make: Make, clock: Clock, database: Database) -> None:
    """The next day begins used up, or an answer over midnight counts on neither day."""

    async def work() -> None:
        limits = make()
        who = Identity("c" * 32, "c", "user", tokens_per_day=100)
        over_midnight = await limits.admit(who, 90)
        clock.seconds += 12 * 3600
        next_day = await limits.admit(who, 80)
        over_midnight.spent(40, 50)
        over_midnight.close()
        assert (await _refused(limits, who, 21))[0] == "tokens"
        (await limits.admit(who, 20)).close()
        next_day.spent(1, 2)
        next_day.close()
        await limits.close()
        assert read_usage(database, (who.key_id, DAY)) == Count(40, 50, 1)
        after = DAY + datetime.timedelta(days=1)
        assert read_usage(database, (who.key_id, after)) == Count(1, 2, 2)

    _run(work())


def test_use_outlives_the_server(make: Make) -> None:
    """A restart gives every key a new day."""

    async def work() -> None:
        limits = make()
        with await limits.admit(BOB, 90) as admission:
            admission.spent(30, 60)
        await limits.close()
        again = make()
        assert (await _refused(again, BOB, 11))[0] == "tokens"
        (await again.admit(BOB, 10)).close()
        await again.close()

    _run(work())


def test_use_is_kept_while_the_database_fails(
    make: Make,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A database that is away for a moment loses what was used, or stops the server."""

    async def work() -> None:
        limits = make()
        failing = [OSError("away"), OSError("away")]

        def sometimes(database: Database, counts: Any) -> None:
            if failing:
                raise failing.pop()
            add_usage(database, counts)

        monkeypatch.setattr(limits_module, "add_usage", sometimes)
        for _ in range(2):
            with await limits.admit(ANN, 10) as admission:
                admission.spent(1, 2)
            while limits._saving is not None:
                await asyncio.sleep(0.001)
        assert "could not be saved" in caplog.text
        await limits.close()
        assert read_usage(database, (ANN.key_id, DAY)) == Count(2, 4, 2)

    _run(work())


def test_counts_share_a_write(
    make: Make, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer waits for a disk of its own."""
    written: list[int] = []

    def record(database: Database, counts: dict[Any, Count]) -> None:
        written.append(sum(count.requests for count in counts.values()))
        add_usage(database, counts)

    monkeypatch.setattr(limits_module, "add_usage", record)

    async def work() -> None:
        limits = make(concurrency=50)
        admissions = [await limits.admit(ANN, 1) for _ in range(50)]
        for admission in admissions:
            admission.close()
        await limits.close()

    _run(work())
    assert written == [50]


def test_several_servers_count_into_one_row(tmp_path: Path, database: Database) -> None:
    """Counts overwrite each other, or the first of a day collide."""
    place = (ANN.key_id, DAY)
    others = [Database(f"sqlite:///{tmp_path / 'serve.db'}") for _ in range(4)]

    def count(other: Database) -> None:
        for _ in range(10):
            add_usage(other, {place: Count(1, 2, 1)})
        other.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, others))
    assert read_usage(database, place) == Count(40, 80, 40)


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=60), st.integers(1, 5))
def test_no_minute_has_more_than_the_rate(
    module_database: Database, steps: list[tuple[float, bool]], rate: int
) -> None:
    """Whatever the rhythm, some 60 seconds hold more requests than allowed; or fewer are let in."""
    clock = Clock()
    limits = Limits(module_database, LimitSettings(concurrency=1000), clock, clock)
    who = Identity("d" * 32, "d", "user", requests_per_minute=rate)
    entered: list[float] = []

    async def work() -> None:
        for pause, obeys in steps:
            clock.seconds += pause
            try:
                admission: Admission = await limits.admit(who, 1)
            except LimitReached as reached:
                assert sum(time > clock.seconds - 60 for time in entered) == rate
                if not obeys:
                    continue
                clock.seconds += reached.retry_after
                admission = await limits.admit(who, 1)
            entered.append(clock.seconds)
            admission.close()
        await limits.close()

    _run(work())
    for time in entered:
        assert sum(time - 60 < other <= time for other in entered) <= rate


@pytest.fixture(scope="module")
def module_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    opened = Database(f"sqlite:///{tmp_path_factory.mktemp('limits') / 'serve.db'}")
    yield opened
    opened.close()
