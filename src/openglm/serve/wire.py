"""Bytes on the wire: server-sent events, identifiers, and calls whose client may leave."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from openglm.serve.errors import ClientGone

T = TypeVar("T")
PING_SECONDS = 15.0
"""Proxies close connections that are silent for 30 or 60 seconds."""
PING = b": ping\n\n"
DONE = b"data: [DONE]\n\n"
TEXT = secrets.token_hex(16)
"""Stands for the text in the value of a `Mould`; nothing that a client sends is equal to it."""
HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


def new_id(prefix: str) -> str:
    """A name that nobody can guess: 128 random bits."""
    return f"{prefix}{secrets.token_hex(16)}"


def event(value: Mapping[str, Any]) -> bytes:
    """One event.

    In ASCII: the readers of zhipuai and zai split lines at U+2028, U+2029 and U+0085 too.
    """
    return b"data: %b\n\n" % to_json(value, ensure_ascii=True, inf_nan_mode="null")


class Mould:
    """Events that are equal but for one text, of which the rest is written once.

    Args:
        value: one of them, with `TEXT` in place of its text.
    """

    def __init__(self, value: Mapping[str, Any]) -> None:
        self._head, self._tail = event(value).split(to_json(TEXT))

    def __call__(self, text: str) -> bytes:
        """The event with this text."""
        return b"%b%b%b" % (self._head, to_json(text, ensure_ascii=True), self._tail)


class EventResponse(StreamingResponse):
    """Sends events as they come, and comments where none come for long.

    An event costs one `send` and no task: at hundreds of tokens a second it counts.

    Args:
        events: the stream; it is closed if the client leaves.
        headers: further ones.
        on_end: called when the response is over, even if it never began.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        on_end: Callable[[], None],
    ) -> None:
        kind = "text/event-stream; charset=utf-8"
        super().__init__(events, media_type=kind, headers={**HEADERS, **headers})
        self.events = events
        self.on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.on_end()

    async def stream_response(self, send: Send) -> None:
        """Sends head, events and end."""
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        self._sent = time.monotonic()
        pinging = asyncio.create_task(self._ping(send))
        try:
            async with aclosing(self.events) as events:
                async for one in events:
                    self._sent = time.monotonic()
                    await send(_body(one))
        finally:
            pinging.cancel()
        await send(_body(b"", more_body=False))

    async def _ping(self, send: Send) -> None:
        """Ends a silence after `PING_SECONDS`, for ever."""
        while True:
            await asyncio.sleep(self._sent + PING_SECONDS - time.monotonic())
            if time.monotonic() >= self._sent + PING_SECONDS:
                self._sent = time.monotonic()
                await send(_body(PING))


def _body(content: bytes, more_body: bool = True) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more_body}


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled if the client leaves.

    Raises:
        ClientGone: it left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_until_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone("the client left before the answer was finished")
        return await working
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
