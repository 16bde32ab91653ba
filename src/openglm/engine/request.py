"""`Request`: one prompt in the engine, with what it holds and what it has written."""

from __future__ import annotations

from dataclasses import dataclass, field

from openglm.engine.reading import Reading
from openglm.engine.speculation import Drafter
from openglm.engine.writer import Step, Writer

HEAD_START = 100
"""A request with a priority one higher stands in line as if it had come so many steps earlier.
That is the ageing too: nobody waits for a newcomer that comes later than that."""


@dataclass(slots=True, eq=False)
class Request:
    """One prompt in work.

    Args:
        id: counted from 0.
        writer: what it feeds next; a reading writes nothing.
        drafter: proposes tokens that may come next.
        priority: higher goes first.
        tenant: whose it is; tenants never share pages.
        deadline: reading of the engine's clock at which it ends, in seconds; None = never.
        arrival: steps that the engine had made when it came.

    Attributes:
        steps: what was written so far.
        finish_reason: None while in work; "stop" or "length" of the last blank, "cancelled",
            "deadline", or "error".
        error: what ended it, with finish_reason "error".
        pages: that it holds, first first; none while it waits.
        keys: names of its full pages.
        num_cached: tokens of the track whose keys and values are in the pages.
        num_read: the most tokens that were so when it was made to lose its pages.
        num_prefix: slots of the trained prefix that are.
        num_hits: tokens that it need not read: its tenant had filled their pages before.
        passes: the track that `num_cached` counts.
        is_cancelled: ends before it is given another token.
    """

    id: int
    writer: Writer | Reading
    drafter: Drafter
    priority: int
    tenant: str
    deadline: float | None
    arrival: int
    steps: list[Step] = field(default_factory=list)
    finish_reason: str | None = None
    error: Exception | None = None
    pages: list[int] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    num_cached: int = 0
    num_read: int = 0
    num_prefix: int = 0
    num_hits: int = 0
    passes: int = 1
    is_cancelled: bool = False

    @property
    def rank(self) -> tuple[int, int]:
        """Place in the line, lowest first; it never changes, so nobody is overtaken for ever."""
        return self.arrival - HEAD_START * self.priority, self.id

    @property
    def num_unread(self) -> int:
        """Tokens to feed before the next one can be chosen."""
        return len(self.writer.track) - self.num_cached

    @property
    def is_running(self) -> bool:
        """Whether it holds memory."""
        return bool(self.pages)

    @property
    def is_decoding(self) -> bool:
        """Whether it needs one token only to choose the next."""
        return self.is_running and self.num_unread == 1

    def blank(self, index: int = 0) -> list[int]:
        """Tokens written into a blank so far."""
        return [s.token for s in self.steps if s.blank == index and s.token is not None]

    def follow(self) -> None:
        """Forgets what was cached of an earlier track; the pages can be written again."""
        if self.passes != self.writer.passes:
            self.passes, self.num_cached = self.writer.passes, 0

    def forget(self) -> list[int]:
        """Lets go of all pages, and returns them; what was read will be read again."""
        pages, self.pages, self.keys = self.pages, [], []
        self.drafter.forget()
        self.num_cached = self.num_prefix = 0
        return pages


@dataclass(frozen=True, slots=True)
class Event:
    """What a step of the engine has to tell about one request.

    Args:
        request_id: whose.
        step: a token, or the end of a blank.
        is_last: nothing follows for this request.
    """

    request_id: int
    step: Step
    is_last: bool
