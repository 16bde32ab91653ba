"""`Jobs`: work that outlives the process which accepted it, as rows of the database.

A worker claims a job for some seconds and renews its claim while it lives. A job whose worker was
killed is due again when these have passed; so it may be begun twice, but it is finished once, and
each line of a batch is answered once: whoever lost the claim can store nothing.

    jobs.add(job)                               # accepted: from here on it is not lost
    job = jobs.claim("batch", worker)           # None if nothing is due
    jobs.finish(job, Outcome("completed", ...))

All calls block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, aliased

from openglm.errors import OpenGLMError
from openglm.serve.database import Database
from openglm.serve.errors import ServeError
from openglm.serve.listing import Page, find, rows
from openglm.serve.tables import Answer, Job, Key

LEASE_SECONDS = 15
MOST_ATTEMPTS = 5
"""After so many crashes without a step forward between them a job is taken for their cause."""
OPEN = ("waiting", "running")
"""Of a job's states those that are not final."""
MOST_OPEN = 256
"""Unfinished jobs of one key and kind."""
KEEP_SECONDS = 7 * 24 * 3600
"""How long an answer waits to be fetched."""


class ClaimLost(OpenGLMError):
    """Another worker has the job: this one was silent for too long."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended.

    Args:
        status: its last, e.g. "completed", "failed".
        result: what it gave.
        error: why it gave nothing.
        change: what else becomes true with it, in the same transaction.
        after: what is to be tidied up then.
    """

    status: str
    result: Mapping[str, Any] | None = None
    error: Mapping[str, Any] | None = None
    change: Callable[[Session], None] | None = None
    after: Callable[[], None] | None = None


class Jobs:
    """The jobs of a database.

    Args:
        database: where they are.
        now: the wall clock, in seconds since 1970.
    """

    def __init__(self, database: Database, now: Callable[[], float] = time.time) -> None:
        self.database = database
        self.now = now

    def add(self, job: Job, alike: str | None = None) -> Job:
        """Accepts a job: id, key, kind and body are given, the rest is filled in here.

        Args:
            job: the job.
            alike: how its id begins, as that of no other unfinished one of the key may.

        Raises:
            ServeError: the key has too many that are unfinished, or one like it.
        """
        job.status, job.attempts, job.due_at, job.created_at = "waiting", 0, 0, self._seconds()
        with self.database.writing() as session:
            # One job of a key after the other: two that see none like them would both be added.
            session.execute(select(Key.id).where(Key.id == job.key_id).with_for_update())
            own = Job.key_id == job.key_id, Job.kind == job.kind, Job.status.in_(OPEN)
            if (session.scalar(select(func.count()).where(*own)) or 0) >= MOST_OPEN:
                message = (
                    f"this key has {MOST_OPEN} unfinished jobs of this kind, as many as it may"
                )
                raise ServeError("queue", message, retry_after=LEASE_SECONDS)
            if alike is not None:
                found = select(Job.id).where(*own, Job.id.startswith(alike)).limit(1)
                if session.scalar(found) is not None:
                    raise ServeError("duplicate", "a call of this request_id is in work already")
            session.add(job)
        return job

    def claim(self, kind: str, worker: str, held: Collection[str] = ()) -> Job | None:
        """Takes the next job that is due; keys with few running jobs go first.

        Args:
            kind: of jobs.
            worker: whose it will be.
            held: ids of those that it works on. After a pause of this machine they are due, too.
        """
        other = aliased(Job)
        busy = select(func.count()).where(
            other.key_id == Job.key_id, other.kind == kind, other.status == "running"
        )
        query = (
            select(Job)
            .where(Job.kind == kind, Job.status.in_(OPEN), Job.due_at <= self._seconds())
            .where(Job.id.not_in(held))
            .order_by(busy.scalar_subquery(), Job.number)
            .limit(1)
            .with_for_update(of=Job, skip_locked=True)  # SQLite has one writer at a time anyway
        )
        with self.database.writing() as session:
            job = session.scalar(query)
            if job is not None:
                job.status, job.worker, job.due_at = "running", worker, self._lease()
                job.attempts += 1
        return job

    def renew(self, worker: str) -> dict[str, bool]:
        """Keeps what a worker has for some more seconds.

        Returns:
            id -> whether it shall be cancelled, of those that it still has.
        """
        own = Job.worker == worker, Job.status == "running"
        with self.database.writing() as session:
            query = update(Job).where(*own).values(due_at=self._lease())
            kept = session.execute(query.returning(Job.id, Job.cancelling_at))
            return {name: cancelling_at is not None for name, cancelling_at in kept}

    def put_back(self, job: Job, seconds: float = 0) -> None:
        """Lets others have a job, after so many seconds; this attempt does not count."""
        with self.database.writing() as session:
            own = self._own(session, job)
            own.status, own.worker, own.attempts = "waiting", None, max(0, own.attempts - 1)
            own.due_at = self._seconds() + int(seconds)

    def note(self, job: Job, state: Mapping[str, Any]) -> None:
        """Remembers how far a job is."""
        with self.database.writing() as session:
            own = self._own(session, job)
            own.state, own.attempts = dict(state), 0
        job.state = dict(state)

    def answer(self, job: Job, line: int, is_good: bool, text: str) -> None:
        """Stores the answer to a line of a batch; the first one stays."""
        with self.database.writing() as session:
            own = self._own(session, job)
            own.attempts = 0
            if session.get(Answer, (job.id, line)) is None:
                session.add(Answer(job_id=job.id, line=line, is_good=is_good, text=text))

    def finish(self, job: Job, outcome: Outcome) -> None:
        """Ends a job; what else that changes happens with it or not at all."""
        with self.database.writing() as session:
            own = self._own(session, job)
            own.status, own.worker, own.finished_at = outcome.status, None, self._seconds()
            own.result = None if outcome.result is None else dict(outcome.result)
            own.error = None if outcome.error is None else dict(outcome.error)
            session.execute(delete(Answer).where(Answer.job_id == job.id))
            if outcome.change is not None:
                outcome.change(session)
        if outcome.after is not None:
            outcome.after()

    def cancel(self, kind: str, key_id: str, name: str) -> Job:
        """Asks for the end of a job; one that was never begun has ended with that.

        Raises:
            ServeError: the key has no such job, or it has ended.
        """
        with self.database.writing() as session:
            job = _find(session, kind, key_id, name)
            if job.status not in OPEN:
                raise ServeError("invalid", f"{name} cannot be cancelled: it is {job.status}")
            job.cancelling_at = job.cancelling_at or self._seconds()
            if job.status == "waiting" and job.state is None:
                job.status, job.finished_at = "cancelled", self._seconds()
        return job

    def get(self, kind: str, key_id: str, name: str) -> Job:
        """A job of a key; `ServeError` if there is none."""
        with self.database.reading() as session:
            return _find(session, kind, key_id, name)

    def list(self, kind: str, key_id: str, page: Page) -> tuple[Sequence[Job], bool]:
        """A page of a key's jobs, and whether there are more."""
        with self.database.reading() as session:
            return rows(session, Job, key_id, page, Job.kind == kind)

    def answered(self, job: Job) -> set[int]:
        """Lines of a batch that have an answer."""
        with self.database.reading() as session:
            return set(session.scalars(select(Answer.line).where(Answer.job_id == job.id)))

    def answers(self, job: Job) -> Iterator[tuple[bool, str]]:
        """Answers to the lines of a batch, in their order, and whether they are good."""
        with self.database.reading() as session:
            query = select(Answer.is_good, Answer.text).where(Answer.job_id == job.id)
            query = query.order_by(Answer.line).execution_options(yield_per=100)
            yield from session.execute(query)

    def count_answers(self, job: Job) -> tuple[int, int]:
        """How many lines of a batch were answered well, and how many not."""
        query = select(Answer.is_good, func.count()).group_by(Answer.is_good)
        with self.database.reading() as session:
            found = session.execute(query.where(Answer.job_id == job.id))
            counts = dict(iter(found))
        return counts.get(True, 0), counts.get(False, 0)

    def forget(self, kind: str) -> None:
        """Removes jobs of a kind that ended long ago."""
        long_ago = self._seconds() - KEEP_SECONDS
        with self.database.writing() as session:
            session.execute(delete(Job).where(Job.kind == kind, Job.finished_at < long_ago))

    def _own(self, session: Session, job: Job) -> Job:
        """The row of a job that a worker has, locked until the transaction ends."""
        query = select(Job).where(Job.id == job.id, Job.worker == job.worker)
        own = session.scalar(query.where(Job.status == "running").with_for_update())
        if own is None:
            raise ClaimLost(f"{job.id} belongs to another worker by now")
        return own

    def _seconds(self) -> int:
        return int(self.now())

    def _lease(self) -> int:
        return self._seconds() + LEASE_SECONDS


def _find(session: Session, kind: str, key_id: str, name: str) -> Job:
    job = find(session, Job, key_id, name)
    if job.kind != kind:
        raise ServeError("not_found", f"{name} is none of these: it is a {job.kind}")
    return job
