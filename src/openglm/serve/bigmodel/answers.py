"""What /api/paas/v4 answers where it is not what /v1 does."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from openglm.serve.document import BigModelErrorBody
from openglm.serve.openai.answers import ChatCompletion, ChatCompletionChunk


class V4ChatCompletion(ChatCompletion):
    """The answers to a conversation."""

    request_id: str


class V4ChatCompletionChunk(ChatCompletionChunk):
    """An event of a stream; the last one has the usage, too."""

    request_id: str


class Accepted(TypedDict):
    """A call that will be answered later."""

    id: str
    request_id: str
    model: str
    task_status: Literal["PROCESSING"]


class Failed(TypedDict):
    """A call that has no answer, and why."""

    id: str
    request_id: str
    model: str
    task_status: Literal["FAIL"]
    error: BigModelErrorBody


class Succeeded(V4ChatCompletion):
    """A call that was answered."""

    task_status: Literal["SUCCESS"]
