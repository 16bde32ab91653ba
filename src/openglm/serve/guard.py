"""What a request must be like before any route sees it: an ASGI middleware around the whole app.

It knows nothing of keys. These are asked for by every route (see `access`), so however a path is
written, whatever route it leads to has its own lock.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.serve.body import BodyLimits
from openglm.serve.exchange import Exchange
from openglm.serve.origin import KnownNames

MESSAGES = {
    400: "the request is malformed",
    403: "this server is not called by that name, or not from that page",
    408: "the body took too long",
    413: "the body is too large",
    431: "the headers are too large",
    500: "the server failed at this request; its log says why",
}
HEADER_OVERHEAD_BYTES = 4  # ": " and the end of the line
MAX_DIGITS = 18  # of a length in bytes
CORS_METHODS = ("GET", "POST", "PUT", "DELETE")
CORS_HEADERS = ("Authorization", "Content-Type", "X-Request-Id")
CORS_EXPOSED = ("Retry-After", "X-Request-Id", "X-OpenGLM-Ignored")

Refuse = Callable[[Scope, int, str], Response]
"""Makes the response of a refusal from scope, status and message."""


def refuse_in_json(scope: Scope, status: int, message: str) -> Response:
    """An error object that clients of both dialects read."""
    return JSONResponse({"error": {"message": message, "code": str(status)}}, status)


@dataclass(frozen=True)
class GuardSettings:
    """What the guard lets through.

    Args:
        names: of this server, and the pages that may call it.
        body: size and time.
        header_bytes: of all headers and the address together.
        read_seconds: that a client may take to read a piece of the response, before it counts as
            gone. The system's buffers come first: this is for clients that do not read at all.
    """

    names: KnownNames = field(default_factory=KnownNames)
    body: BodyLimits = field(default_factory=BodyLimits)
    header_bytes: int = 16_384
    read_seconds: float = 60.0


class Guard:
    """The middleware.

    Args:
        app: what is guarded.
        settings: what is let through.
        refuse: writes refusals in the dialect of a path.
    """

    def __init__(
        self, app: ASGIApp, settings: GuardSettings | None = None, refuse: Refuse = refuse_in_json
    ) -> None:
        self.settings = settings or GuardSettings()
        self._refuse = refuse
        self._app = app
        if self.settings.names.origins:  # without credentials: keys travel in a header, not cookies
            self._app = CORSMiddleware(
                app,
                allow_origins=self.settings.names.origins,
                allow_methods=CORS_METHODS,
                allow_headers=CORS_HEADERS,
                expose_headers=CORS_EXPOSED,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        status = self._look_at(scope)
        if scope["type"] == "websocket":
            if status is None:
                await self._app(scope, receive, send)
            else:
                await send({"type": "websocket.close", "code": 1008})  # before accepting: HTTP 403
            return
        chosen = self.settings
        exchange = Exchange(scope, receive, send, chosen.body, chosen.read_seconds)
        try:
            if status is None:
                status = await exchange.run(self._app)
            if status is not None:
                await self._answer(exchange, scope, status)
        except Exception:  # the server logs it
            if not exchange.is_started:
                await self._answer(exchange, scope, 500)
            exchange.record.status = 500
            raise
        finally:
            exchange.record.write(scope)

    async def _answer(self, exchange: Exchange, scope: Scope, status: int) -> None:
        """Sends a refusal."""
        response = self._refuse(scope, status, MESSAGES[status])
        response.headers["Connection"] = "close"  # the rest of the body is not read
        await response(scope, exchange.receive, exchange.send)

    def _look_at(self, scope: Scope) -> int | None:
        """The status to refuse a request with, by its headers; None if there is no reason."""
        raw = scope["headers"]
        size = sum(len(name) + len(value) + HEADER_OVERHEAD_BYTES for name, value in raw)
        size += len(scope.get("raw_path") or scope["path"]) + len(scope["query_string"])
        if size > self.settings.header_bytes:
            return 431
        headers = Headers(scope=scope)
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        names = self.settings.names
        if len(hosts) != 1 or not names.may_name(hosts[0]):
            return 403
        if len(origins) > 1 or not all(names.may_call(origin, hosts[0]) for origin in origins):
            return 403
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) <= MAX_DIGITS):
            return 400
        return 413 if int(length) > self.settings.body.of(scope["path"]) else None
