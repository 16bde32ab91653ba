"""`Worker`: does jobs beside the server's calls, several of each kind at once."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from openglm.log import logger
from openglm.serve.errors import ServeError, as_serve_error, bigmodel_body
from openglm.serve.jobs import LEASE_SECONDS, MOST_ATTEMPTS, ClaimLost, Jobs, Outcome
from openglm.serve.runner import EngineFailed
from openglm.serve.tables import Job

POLL_SECONDS = 2.0
"""How soon jobs are found that another process accepted; those of this one are found at once."""
RENEW_SECONDS = LEASE_SECONDS / 3
RETRY_SECONDS = 15.0
HOUR_SECONDS = 3600.0


class GivenUp(ServeError):
    """A hopeless job has nothing to give."""

    def __init__(self) -> None:
        super().__init__("internal", f"given up: the server ended {MOST_ATTEMPTS} times at this")


@dataclass(slots=True, eq=False)
class Running:
    """A job in work.

    Args:
        job: as it was when it was claimed.
        stop: set when it shall be cancelled.
    """

    job: Job
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def is_hopeless(self) -> bool:
        """Whether the server ended in it so often that it is taken for the cause."""
        return self.job.attempts > MOST_ATTEMPTS


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of work.

    Args:
        work: does a job. It may be begun again after any `await`, by another process; one that is
            hopeless it ends without trying.
        at_once: jobs in work at the same time.
        is_kept: also long after its end.
    """

    work: Callable[[Running], Awaitable[Outcome]]
    at_once: int
    is_kept: bool


class Worker:
    """Claims jobs and does them, from `start` on until it is closed.

    Args:
        jobs: all of them.
    """

    def __init__(self, jobs: Jobs) -> None:
        self.jobs = jobs
        self.name = secrets.token_hex(16)
        self._running: dict[str, tuple[Running, asyncio.Task[None]]] = {}
        self._news = asyncio.Event()
        self._is_closing = False

    def start(self, kinds: Mapping[str, Kind]) -> None:
        """Begins to work.

        Args:
            kinds: of jobs that it does, by name.
        """
        self._serving = asyncio.create_task(self._serve(kinds))
        self._renewing = asyncio.create_task(self._renew(kinds))

    def wake(self) -> None:
        """Says that a job was added."""
        self._news.set()

    def stop(self, job_id: str) -> None:
        """Says that a job shall be cancelled: if it is in work here, that is within a step."""
        if found := self._running.get(job_id):
            found[0].stop.set()

    async def close(self) -> None:
        """Breaks off what is in work, and puts it back for the next start."""
        self._is_closing = True
        self._news.set()
        await self._serving  # not cancelled: a claim under way would be nobody's
        self._renewing.cancel()
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(self._renewing, *tasks, return_exceptions=True)
        for running, _ in self._running.values():  # cancelled before their first step
            with suppress(ClaimLost):
                await asyncio.to_thread(self.jobs.put_back, running.job)

    async def _serve(self, kinds: Mapping[str, Kind]) -> None:
        while not self._is_closing:
            self._news.clear()
            try:
                for name, kind in kinds.items():
                    await self._fill(name, kind)
            except Exception:
                logger.exception("jobs could not be claimed; trying again")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), POLL_SECONDS)

    async def _fill(self, name: str, kind: Kind) -> None:
        """Begins jobs of a kind while there are some, and places for them."""
        while not self._is_closing:
            if sum(one.job.kind == name for one, _ in self._running.values()) >= kind.at_once:
                return
            job = await asyncio.to_thread(self.jobs.claim, name, self.name, list(self._running))
            if job is None:
                return
            running = Running(job)
            if job.cancelling_at is not None:
                running.stop.set()
            self._running[job.id] = running, asyncio.create_task(self._do(running, kind))

    async def _do(self, running: Running, kind: Kind) -> None:
        """Does one job and stores how it ended."""
        job = running.job
        try:
            await asyncio.to_thread(self.jobs.finish, job, await self._outcome(running, kind))
        except ClaimLost as error:
            logger.warning("%s", error)
        except asyncio.CancelledError:
            with suppress(ClaimLost):
                self.jobs.put_back(job)
            raise
        except EngineFailed as error:
            logger.error("%s waits for a working engine: %s", job.id, error)
            with suppress(ClaimLost):
                await asyncio.to_thread(self.jobs.put_back, job, RETRY_SECONDS)
        except Exception:  # of the database: the claim runs out, and the job is due again
            logger.exception("the end of %s could not be stored", job.id)
        finally:
            if self._running[job.id][0] is running:  # else it was put back, and claimed anew by now
                del self._running[job.id]
            self._news.set()

    async def _outcome(self, running: Running, kind: Kind) -> Outcome:
        try:
            return await kind.work(running)
        except (ClaimLost, EngineFailed):
            raise
        except Exception as error:
            logger.exception("%s failed", running.job.id)
            # BigModel's words fit both dialects: a code and a message
            return Outcome("failed", error=bigmodel_body(as_serve_error(error))["error"])

    async def _renew(self, kinds: Mapping[str, Kind]) -> None:
        """Keeps the claims, and notices what other processes cancelled."""
        passed = HOUR_SECONDS
        while True:
            try:
                held = dict(self._running)  # as of before, or a new claim would seem lost
                kept = await asyncio.to_thread(self.jobs.renew, self.name)
                for job_id, (running, task) in held.items():
                    if job_id not in kept:
                        task.cancel()
                    elif kept[job_id]:
                        running.stop.set()
                if passed >= HOUR_SECONDS:
                    passed = 0
                    for name in [name for name, kind in kinds.items() if not kind.is_kept]:
                        await asyncio.to_thread(self.jobs.forget, name)
            except Exception:
                logger.exception("claims could not be renewed; trying again")
            await asyncio.sleep(RENEW_SECONDS)
            passed += RENEW_SECONDS
