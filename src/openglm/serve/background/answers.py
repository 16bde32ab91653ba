"""What a batch is to clients of both dialects."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict


class BatchError(TypedDict):
    """What is wrong with a batch, or with a line of its file."""

    code: str
    message: str
    line: NotRequired[int | None]
    param: NotRequired[str | None]


class BatchErrors(TypedDict):
    """Why a batch failed."""

    object: Literal["list"]
    data: list[BatchError]


class RequestCounts(TypedDict):
    """How many lines a batch has, and how many of them were answered."""

    total: int
    completed: int
    failed: int


Status = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling",
    "cancelled",
]  # fmt: skip


class BatchObject(TypedDict):
    """A batch; times are in seconds since 1970, null where it did not come to that."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: Status
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
