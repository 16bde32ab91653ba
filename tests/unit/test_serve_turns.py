"""Engines on one device: one at a time, and none waits longer than its share of the time asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from itertools import pairwise

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.serve.turns import MOST_DEBT_SECONDS, Turns

TICK = 1 / 64
"""Seconds that sum up exactly."""


class Clock:
    """Time passes only in the hands of whoever has a turn."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def _alternate(steps: Sequence[tuple[str, float, int]]) -> list[str]:
    """Who had a turn, in order, when all came at once: name, seconds of a step, number of steps."""
    clock, order = Clock(), []
    turns = Turns(clock)

    def work(name: str, seconds: float, count: int) -> None:
        for _ in range(count):
            with turns.turn(name):
                order.append(name)
                clock.seconds += seconds
        turns.leave(name)

    threads = [threading.Thread(target=work, args=one) for one in steps]
    with turns.turn("gate"):  # nobody begins before all wait
        for number, thread in enumerate(threads, start=2):
            thread.start()
            while len(turns._used) < number:
                time.sleep(0.001)
    turns.leave("gate")
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), order
    return order


def test_equals_alternate() -> None:
    """One model writes its whole answer before the other begins."""
    order = _alternate([("a", TICK, 50), ("b", TICK, 50)])
    assert all({*order[i : i + 2]} == {"a", "b"} for i in range(0, 100, 2)), order


def test_time_is_shared_not_steps() -> None:
    """A small model beside a large one is slowed down to the pace of the large one."""
    order = _alternate([("large", 8 * TICK, 20), ("small", TICK, 160)])
    places = [index for index, name in enumerate(order) if name == "large"]
    gaps = [later - earlier for earlier, later in pairwise(places)]
    assert set(gaps) == {9}, gaps


def test_a_long_step_is_not_paid_back_in_full() -> None:
    """Whoever read a long text once stands still for as long as that took."""
    order = _alternate([("long", 10.0, 2), ("short", TICK, 100)])
    second = [index for index, name in enumerate(order) if name == "long"][1]
    assert second - order.index("long") <= MOST_DEBT_SECONDS / TICK + 1


def test_nobody_is_waited_for_that_has_no_work() -> None:
    """A model that is idle stops all others, or has saved up time when it comes back."""
    clock = Clock()
    turns = Turns(clock)
    with turns.turn("idle"):
        clock.seconds += TICK
    turns.leave("idle")
    turns.leave("idle")
    for _ in range(100):
        with turns.turn("busy"):
            clock.seconds += TICK

    def work() -> None:
        with turns.turn("idle"):
            clock.seconds += TICK

    thread = threading.Thread(target=work)
    thread.start()
    while len(turns._used) < 2:
        time.sleep(0.001)
    assert turns._used["idle"] == turns._used["busy"]
    turns.leave("busy")
    thread.join(30)
    assert not thread.is_alive()


def test_a_step_that_fails_ends_its_turn() -> None:
    """A model that breaks takes all others with it."""
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.turn("broken"):
        raise ValueError("broken")
    turns.leave("broken")
    with turns.turn("whole"):
        pass
