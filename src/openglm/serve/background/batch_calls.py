"""/v1/batches: many calls in an uploaded file, answered in the background."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool

from openglm.serve.background.answers import BatchErrors, BatchObject, Status
from openglm.serve.background.batches import KIND, WINDOW_SECONDS, errors_list
from openglm.serve.background.errands import ENDPOINTS, find_endpoint
from openglm.serve.document import answers
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire, ignored
from openglm.serve.jobs import OPEN, Jobs
from openglm.serve.listing import Listed, PageQuery, listed
from openglm.serve.service import Call, call, headers_of
from openglm.serve.tables import Job
from openglm.serve.wire import new_id

router = APIRouter()
MOST_METADATA = 16
Name = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]


class BatchRequest(Wire):
    """POST /v1/batches, and BigModel's, whose last field is sent always and is true."""

    input_file_id: str
    endpoint: Annotated[str, Field(json_schema_extra={"enum": [*ENDPOINTS]})]
    completion_window: Literal["24h"] | None = None
    metadata: Annotated[dict[Name, Value], Field(max_length=MOST_METADATA)] | None = None
    auto_delete_input_file: StrictBool | None = None


@router.post("/batches", response_model=None, responses=answers(BatchObject))
async def create(body: BatchRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Accepts a batch."""
    find_endpoint(body.endpoint)
    service, key_id = call.service, call.identity.key_id
    async with call.visiting():
        file = await asyncio.to_thread(service.files.get, key_id, body.input_file_id)
        if file.purpose != "batch":
            message = f"{file.id} was uploaded with the purpose {file.purpose}, not batch"
            raise ServeError("invalid_field", message, "input_file_id")
        kept = {
            "input_file_id": file.id,
            "endpoint": body.endpoint,
            "metadata": body.metadata,
            "auto_delete_input_file": bool(body.auto_delete_input_file),
        }
        job = Job(id=new_id("batch_"), key_id=key_id, kind=KIND, body=kept, input_id=file.id)
        await asyncio.to_thread(service.jobs.add, job)
    call.service.worker.wake()
    found = await asyncio.to_thread(batch_object, job, service.jobs)
    return JSONResponse(found, headers=headers_of(ignored(body)))


@router.get("/batches")
async def list_batches(
    call: Annotated[Call, Depends(call)], page: PageQuery
) -> Listed[BatchObject]:
    """The batches of this key."""

    def read() -> Listed[BatchObject]:
        jobs = call.service.jobs
        found, has_more = jobs.list(KIND, call.identity.key_id, page)
        return listed([batch_object(job, jobs) for job in found], has_more)

    return await asyncio.to_thread(read)


@router.get("/batches/{batch_id}")
async def get_batch(batch_id: str, call: Annotated[Call, Depends(call)]) -> BatchObject:
    """One batch."""

    def read() -> BatchObject:
        jobs = call.service.jobs
        return batch_object(jobs.get(KIND, call.identity.key_id, batch_id), jobs)

    return await asyncio.to_thread(read)


@router.post("/batches/{batch_id}/cancel")
async def cancel(batch_id: str, call: Annotated[Call, Depends(call)]) -> BatchObject:
    """Ends a batch; the lines that were answered are kept."""
    jobs = call.service.jobs
    job = await asyncio.to_thread(jobs.cancel, KIND, call.identity.key_id, batch_id)
    call.service.worker.stop(job.id)
    return await asyncio.to_thread(batch_object, job, jobs)


def batch_object(job: Job, jobs: Jobs) -> BatchObject:
    """A batch for clients; asks the database for what is counted."""
    state, result = job.state or {}, job.result or {}
    status = job.status
    if status in OPEN:
        status = "cancelling" if job.cancelling_at else state.get("status", "validating")
        completed, failed = jobs.count_answers(job)
    else:
        completed, failed = result.get("completed", 0), result.get("failed", 0)
    ended = {job.status: job.finished_at}
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.body["endpoint"],
        "errors": _errors_of(job.error),
        "input_file_id": job.body["input_file_id"],
        "completion_window": "24h",
        "status": cast(Status, status),
        "output_file_id": result.get("output_file_id"),
        "error_file_id": result.get("error_file_id"),
        "created_at": job.created_at,
        "in_progress_at": state.get("in_progress_at"),
        "expires_at": job.created_at + WINDOW_SECONDS,
        "finalizing_at": state.get("finalizing_at"),
        "completed_at": ended.get("completed"),
        "failed_at": ended.get("failed"),
        "expired_at": ended.get("expired"),
        "cancelling_at": job.cancelling_at,
        "cancelled_at": ended.get("cancelled"),
        "request_counts": {
            "total": state.get("total", 0),
            "completed": completed,
            "failed": failed,
        },
        "metadata": job.body["metadata"],
    }


def _errors_of(error: Mapping[str, Any] | None) -> BatchErrors | None:
    """Why a batch failed; what failed by the server's fault has a code and a message only."""
    found = error if error is None or "data" in error else errors_list([dict(error)])
    return cast("BatchErrors | None", found)
