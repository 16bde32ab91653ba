"""Conversations that are answered later, under /api/paas/v4: POST /async/chat/completions."""

from __future__ import annotations

import asyncio
import hashlib
import json
import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from openglm.serve.background.errands import V4_CHAT, run
from openglm.serve.bigmodel.answers import Accepted, Failed, Succeeded
from openglm.serve.bigmodel.requests import V4ChatRequest
from openglm.serve.document import answers
from openglm.serve.errors import ServeError
from openglm.serve.fields import ignored
from openglm.serve.jobs import OPEN, Outcome
from openglm.serve.keys import KeyStore
from openglm.serve.service import Call, Service, call, headers_of
from openglm.serve.tables import Job
from openglm.serve.wire import new_id
from openglm.serve.worker import GivenUp, Running

router = APIRouter()
KIND = "chat"
MOST_BYTES = 1 << 22
"""Of a call that is kept: the longest context has fewer."""


@router.post("/async/chat/completions", response_model=None, responses=answers(Accepted))
async def async_chat(body: V4ChatRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Accepts a conversation, to be answered later."""
    call.models.find(body.model)
    if body.stream:
        raise ServeError("invalid_field", "nobody is there to read a stream", "stream")
    body.call(call.place)  # what cannot be honoured is refused now
    body.request_id = body.request_id or new_id("req-")
    kept = body.model_dump(mode="json", exclude_unset=True, by_alias=True)
    if await asyncio.to_thread(_size, kept) > MOST_BYTES:
        raise ServeError("too_large", f"a call for later may have {MOST_BYTES:,} bytes at most")
    # Not looked for in the bodies: PostgreSQL reads no JSON with a zero character in it.
    name = body.request_id.encode("utf-8", "surrogatepass")
    alike = f"async-{hashlib.blake2b(name, digest_size=8).hexdigest()}"
    own = f"{alike}{secrets.token_hex(8)}"
    job = Job(id=own, key_id=call.identity.key_id, kind=KIND, body=kept)
    async with call.visiting():
        await asyncio.to_thread(call.service.jobs.add, job, alike)
    call.service.worker.wake()
    return JSONResponse(_status(job, "PROCESSING"), headers=headers_of(ignored(body)))


@router.get(
    "/async-result/{job_id}",
    response_model=None,
    responses={200: {"model": Accepted | Failed | Succeeded}},
)
async def async_result(job_id: str, call: Annotated[Call, Depends(call)]) -> dict[str, Any]:
    """The answer, once it is there; before, nothing but that it is not: no `choices` at all."""
    key_id = call.identity.key_id
    job = await asyncio.to_thread(call.service.jobs.get, KIND, key_id, job_id)
    if job.status in OPEN:
        return _status(job, "PROCESSING")
    if job.result is None:
        return _status(job, "FAIL") | {"error": job.error}
    return job.result | _status(job, "SUCCESS")


class Chats:
    """The work of these jobs.

    Args:
        service: whose models answer.
        keys: who may still ask them.
    """

    def __init__(self, service: Service, keys: KeyStore) -> None:
        self.service = service
        self.keys = keys

    async def work(self, running: Running) -> Outcome:
        """Answers a conversation.

        Raises:
            EngineFailed: no engine works.
        """
        job = running.job
        if running.is_hopeless:
            raise GivenUp
        identity = await asyncio.to_thread(self.keys.identity, job.key_id)
        status, found = await run(self.service, identity, V4_CHAT, job.body)
        if status == 200:
            return Outcome("completed", result=found)
        return Outcome("failed", error=found["error"])


def _size(body: dict[str, Any]) -> int:
    """Characters of a body as it is kept."""
    try:
        return len(json.dumps(body, allow_nan=False))
    except ValueError as error:
        raise ServeError("invalid", f"a number of this call is none: {error}") from error


def _status(job: Job, status: str) -> dict[str, Any]:
    asked = job.body
    return {
        "id": job.id,
        "request_id": asked["request_id"],
        "model": asked["model"],
        "task_status": status,
    }
