"""`Attack`: one row of the table, and `Verdict`: what came of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from openglm.attacks.target import Answer, NotApplicable, Target

MOST_FAULTS = 8
"""Of one attack; a server that fails so often fails everywhere."""
REFUSAL_SECONDS = 15.0
"""A refusal that takes longer is a way to keep the server busy."""
ALIVE_SECONDS = 10.0
WAIT_SECONDS = 2.0
"""For an answer to somebody else, while the server is busy with an attack."""
TRACES = ("Traceback (most recent call last)", 'File "/')
"""What no client may see of the server's inside."""
State = Literal["withstood", "failed", "not applicable"]


@dataclass(frozen=True, slots=True)
class Attack:
    """One row.

    Args:
        id: of the row: A access, F files, M models, S fetching, R resources, P prompts.
        tries: what is tried.
        expects: what a good server does.
        run: does it, and says of each thing that went wrong what it was.
    """

    id: str
    tries: str
    expects: str
    run: Callable[[Target], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of an attack.

    Args:
        attack: the row.
        state: how it ended.
        notes: what went wrong, or why it is not applicable.
        seconds: that it took.
    """

    attack: Attack
    state: State
    notes: tuple[str, ...]
    seconds: float


@contextmanager
def watched(target: Target, seconds: list[float]) -> Iterator[None]:
    """Notes how long others wait for an answer meanwhile."""
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seconds.append(target.send("GET", "/health", key=None).seconds)
            over.wait(0.05)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def launch(attack: Attack, target: Target) -> Verdict:
    """Tries one attack, and then whether the server still lives."""
    begin = time.monotonic()
    try:
        faults = list(islice(attack.run(target), MOST_FAULTS))
    except NotApplicable as reason:
        return Verdict(attack, "not applicable", (str(reason),), time.monotonic() - begin)
    except OSError as error:  # of a bare connection
        faults = [f"a connection broke: {type(error).__name__}: {error}"]
    faults += is_alive(target)
    state: State = "failed" if faults else "withstood"
    return Verdict(attack, state, tuple(faults), time.monotonic() - begin)


def is_alive(target: Target) -> Iterator[str]:
    """Says so if an ordinary call is not answered any more."""
    found = target.ask()
    if found.status != 200 or found.seconds > ALIVE_SECONDS:
        yield f"an ordinary call afterwards: {found.status} after {found.seconds:.1f} s"


def unharmed(what: str, found: Answer) -> Iterator[str]:
    """Says so if the server failed at a request, or showed its inside."""
    if found.status == 0:
        yield f"{what}: no answer ({found.text})"
    elif found.status >= 500 and found.status != 503:
        yield f"{what}: {found.status} {found.text[:120]}"
    if any(trace in found.text for trace in TRACES):
        yield f"{what}: the answer shows a traceback"


def refused(what: str, found: Answer, statuses: Collection[int] = range(400, 432)) -> Iterator[str]:
    """Says so if a request was not refused, cleanly and soon."""
    yield from unharmed(what, found)
    if 0 < found.status < 500 and found.status not in statuses:
        yield f"{what}: {found.status}, not a refusal: {found.text[:120]}"
    if found.seconds > REFUSAL_SECONDS:
        yield f"{what}: it took {found.seconds:.0f} s"
