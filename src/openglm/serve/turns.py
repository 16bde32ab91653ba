"""`Turns`: engines on one device step one at a time, and each has its share of the time.

Two at once would gain nothing, since a step keeps the whole device busy, and lose much: on a CPU
torch has a set of threads for each thread that calls it, and whoever waits for the pool of the
kernels with a short batch waits with Python's lock in hand, so that the event loop waits, too.

Turns are given by the time that was used, not by number: beside a model that takes 100 ms for a
step a small one that takes 2 ms would else have a fiftieth of the machine.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

MOST_DEBT_SECONDS = 0.25
"""How far one may be ahead of the others. A long context is read in a step of seconds, and whoever
reads it shall not stand still for as many seconds afterwards."""


class Turns:
    """A lock that is given to whoever has had it for the shortest time.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._news = threading.Condition()
        self._used: dict[object, float] = {}  # by those who have work: seconds
        self._is_taken = False

    @contextmanager
    def turn(self, who: object) -> Iterator[None]:
        """Waits for a turn, and holds it for the time of the block.

        Whoever has had a turn is expected back at once, until it says that it will `leave`. One
        that comes anew has used as much as the one that has used least: nobody saves up time.
        """
        with self._news:
            self._used.setdefault(who, min(self._used.values(), default=0.0))
            self._news.wait_for(lambda: not self._is_taken and self._first() is who)
            self._is_taken = True
        begun = self._clock()
        try:
            yield
        finally:
            with self._news:
                self._is_taken = False
                self._charge(who, self._clock() - begun)
                self._news.notify_all()

    def leave(self, who: object) -> None:
        """Says that somebody has no work any more; does nothing if it had none."""
        with self._news:
            if self._used.pop(who, None) is not None:
                self._news.notify_all()

    def _first(self) -> object:
        return min(self._used, key=self._used.__getitem__)

    def _charge(self, who: object, seconds: float) -> None:
        others = [used for other, used in self._used.items() if other is not who]
        most = min(others) + MOST_DEBT_SECONDS if others else float("inf")
        self._used[who] = min(self._used[who] + seconds, most)
