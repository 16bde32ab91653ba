"""What readers send: a form with a key, or to Gradio the values of fields, which name no files.

Gradio looks for files in the values of every field, and fetches those that name an address. The
page has no field for files, so nothing of that kind comes from it.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive


async def read_body(request: Request, most_bytes: int) -> bytes | None:
    """The body of a request; None if it is larger, or its sender left."""
    body = b""
    try:
        async for part in request.stream():
            body += part
            if len(body) > most_bytes:
                return None
    except ClientDisconnect:
        return None
    return body


def again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that brings a body which was read before."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def bring() -> Message:
        return waiting.pop() if waiting else await receive()

    return bring


def is_free_of_files(body: bytes) -> bool:
    """Whether this is JSON in which no object could be one of Gradio's files: they have a path."""
    try:
        waiting: list[Any] = [json.loads(body)]
    except (ValueError, RecursionError):
        return False
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if "path" in value:
                return False
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value
    return True
