"""`Exchange`: one request and its response, between the server and the application."""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openglm.serve.body import Body, BodyLimits
from openglm.serve.record import HEADER, record_of

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Of responses that do not set them; a page sets the policy that it needs itself."""


class Exchange:
    """One request and its response, which gets its id and the security headers.

    A client that does not read ends it. A timeout of its own for each message would cost more than
    all else that is done with a token here, so one timer looks after all.

    Args:
        scope: of the request.
        receive: the server's.
        send: likewise.
        limits: of the body.
        read_seconds: see `GuardSettings`.

    Attributes:
        record: of it.
        is_started: whether the response has begun.
    """

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, limits: BodyLimits, read_seconds: float
    ) -> None:
        self.record = record_of(scope)
        self.receive = receive
        self.is_started = False
        self._scope = scope
        self._send = send
        self._read_seconds = read_seconds
        self._body = Body(receive, limits.of(scope["path"]), limits.seconds)
        self._now = asyncio.get_running_loop().time
        self._last: Message = {}  # that was sent
        self._blocked_since: float | None = None  # by a client that does not read

    async def run(self, app: ASGIApp) -> int | None:
        """Runs the application; the status to refuse with if its body was not taken."""
        self._timer = asyncio.get_running_loop().call_later(self._read_seconds, self._look)
        try:
            async with asyncio.timeout(None) as self._patience:
                await app(self._scope, self._receive_of_app, self._send_of_app)
        except Exception:
            if self._patience.expired():  # the server closes a connection with half a response
                self.record.has_left = True
                return None
            if self._body.refused_with is None or self.is_started:
                raise
        finally:
            self._timer.cancel()
        return None if self.is_started else self._body.refused_with

    def _look(self) -> None:
        """Ends the application if a message has been on its way for too long."""
        now = self._now()
        since = now if self._blocked_since is None else self._blocked_since
        if now >= since + self._read_seconds:
            self._patience.reschedule(now)
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(since + self._read_seconds, self._look)

    async def _receive_of_app(self) -> Message:
        """The next message for the application, which may be the client's end."""
        message = await self._body.receive()
        if message["type"] == "http.disconnect":  # comes behind the response, too
            is_body = self._last.get("type") == "http.response.body"
            self.record.has_left = not is_body or self._last.get("more_body", False)
        return message

    async def _send_of_app(self, message: Message) -> None:
        """Sends a message of the application.

        An application may take the end of its body for an error of its own and answer something
        else; unless it began before, that is dropped for the answer of the guard.
        """
        if self.is_started or self._body.refused_with is None:
            await self.send(message)

    async def send(self, message: Message) -> None:
        """Sends a message, with our headers if it begins the response."""
        if message["type"] == "http.response.start":
            self.is_started = True
            self.record.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[HEADER] = self.record.id
            for name, value in SECURITY_HEADERS.items():
                headers.setdefault(name, value)
        self._last = message
        if self._blocked_since is None:
            self._blocked_since = self._now()
        try:
            await self._send(message)
        finally:
            self._blocked_since = None
