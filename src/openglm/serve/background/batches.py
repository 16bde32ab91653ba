"""`Batches`: files of many calls, answered in the background into files of answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable, Iterator
from functools import partial
from itertools import chain
from typing import Any

from sqlalchemy.orm import Session

from openglm.serve.background.errands import find_endpoint, run
from openglm.serve.background.lines import Line, check, lines
from openglm.serve.errors import ServeError, as_serve_error, say
from openglm.serve.files import RESULT
from openglm.serve.identity import AuthenticationFailed
from openglm.serve.jobs import Outcome
from openglm.serve.keys import KeyStore
from openglm.serve.service import Service
from openglm.serve.tables import File, Job
from openglm.serve.worker import GivenUp, Running

KIND = "batch"
LINES_AT_ONCE = 8
WINDOW_SECONDS = 24 * 3600
"""Of `completion_window`, "24h", the only one."""
ENDINGS = {
    "cancelled": ("batch_cancelled", "the batch was cancelled before this line was answered"),
    "expired": ("batch_expired", "the batch ran out of time before this line was answered"),
    "failed": ("batch_interrupted", "the server ended again and again while it was at this batch"),
}
"""Status -> code and message of lines that have no answer."""


class Batches:
    """The work of batches.

    Args:
        service: whose models answer.
        keys: who may still ask them.
    """

    def __init__(self, service: Service, keys: KeyStore) -> None:
        self.service = service
        self.jobs = service.jobs
        self.keys = keys

    async def work(self, running: Running) -> Outcome:
        """Checks a batch, answers its lines, and writes the files of answers.

        Raises:
            EngineFailed: no engine works.
        """
        job, files = running.job, self.service.files
        try:
            source = await asyncio.to_thread(files.get, job.key_id, job.body["input_file_id"])
        except ServeError as error:
            return Outcome(
                "failed", error=errors_list([{"code": "no_file", "message": error.message}])
            )
        path = files.path(source)
        if job.state is None:
            if running.is_hopeless:
                raise GivenUp
            endpoint = find_endpoint(job.body["endpoint"])
            problems, total = await asyncio.to_thread(check, path, endpoint)
            if problems:
                return Outcome("failed", error=errors_list(problems))
            state = {"status": "in_progress", "total": total, "in_progress_at": int(time.time())}
            await asyncio.to_thread(self.jobs.note, job, state)
        answered = await asyncio.to_thread(self.jobs.answered, job)
        ending = "failed"
        if not running.is_hopeless:
            ending = await self._until_ended(running, lines(path, answered))
        assert job.state is not None
        state = job.state | {"status": "finalizing", "finalizing_at": int(time.time())}
        await asyncio.to_thread(self.jobs.note, job, state)
        return await asyncio.to_thread(self._finish, job, source, ending)

    async def _until_ended(self, running: Running, waiting: Iterator[Line]) -> str:
        """Answers lines until all are, time is out, or it is cancelled; which of these it was."""
        left = running.job.created_at + WINDOW_SECONDS - time.time()
        answering = asyncio.create_task(self._answer(running.job, waiting))
        stopping = asyncio.create_task(running.stop.wait())
        try:
            both = {answering, stopping}
            await asyncio.wait(both, timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
                return "completed"
            return "cancelled" if stopping.done() else "expired"
        finally:
            answering.cancel()
            stopping.cancel()
            await asyncio.gather(answering, stopping, return_exceptions=True)

    async def _answer(self, job: Job, waiting: Iterator[Line]) -> None:
        """Answers lines, several at once."""
        turn = asyncio.Lock()

        async def answer_some() -> None:
            while True:
                async with turn:
                    line = await asyncio.to_thread(next, waiting, None)
                if line is None:
                    return
                status, body = await self._run(job, line)
                text = line.answer(status, body)
                save = asyncio.to_thread(self.jobs.answer, job, line.number, status == 200, text)
                await _to_its_end(save)  # or a cancelled batch might tell of it in both files

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(LINES_AT_ONCE):
                    group.create_task(answer_some())
        except ExceptionGroup as errors:  # the others ended with the first
            raise errors.exceptions[0] from errors

    async def _run(self, job: Job, line: Line) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to a line."""
        try:
            identity = await asyncio.to_thread(self.keys.identity, job.key_id)
        except AuthenticationFailed as error:
            return say(as_serve_error(error), line.endpoint.is_bigmodel)
        return await run(self.service, identity, line.endpoint, line.body)

    def _finish(self, job: Job, source: File, ending: str) -> Outcome:
        """Writes the files of answers, which the outcome makes known."""
        answers, files = self.jobs.answers, self.service.files
        unanswered: list[str] = []
        if ending in ENDINGS:
            rest = lines(files.path(source), self.jobs.answered(job))
            unanswered = [line.unanswered(*ENDINGS[ending]) for line in rest]
        good = (text for is_good, text in answers(job) if is_good)
        bad = (text for is_good, text in answers(job) if not is_good)
        output = self._write(job, "output", good)
        errors = self._write(job, "error", chain(bad, unanswered))
        completed, failed = self.jobs.count_answers(job)
        deletes = job.body["auto_delete_input_file"]

        def change(session: Session) -> None:
            session.add_all(file for file in (output, errors) if file is not None)
            if deletes:
                files.let_go(session, source, job.id)

        result = {
            "output_file_id": output and output.id,
            "error_file_id": errors and errors.id,
            "completed": completed,
            "failed": failed + len(unanswered),
        }
        code, message = ENDINGS["failed"]
        error = errors_list([{"code": code, "message": message}]) if ending == "failed" else None
        after = partial(files.tidy, source) if deletes else None
        return Outcome(ending, result, error, change, after)

    def _write(self, job: Job, name: str, texts: Iterable[str]) -> File | None:
        """A file of answers; None if there are none."""
        files = self.service.files
        content = (f"{text}\n".encode("ascii") for text in texts)
        file = files.write(job.key_id, f"{job.id}_{name}.jsonl", RESULT, content)
        if file.size:
            return file
        files.discard(file)
        return None


async def _to_its_end(work: Coroutine[Any, Any, None]) -> None:
    """Does work which a thread goes on with anyway; who cancels this waits for it, too."""
    task = asyncio.create_task(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def errors_list(problems: list[dict[str, Any]]) -> dict[str, Any]:
    """`errors` of a batch."""
    return {"object": "list", "data": problems}
