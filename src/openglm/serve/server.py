"""`run`: the server as a process, which ends when its calls have ended."""

from __future__ import annotations

import asyncio
import errno
import socket
from types import FrameType

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.errors import UsageError
from openglm.log import logger
from openglm.serve.app import error_response
from openglm.serve.connection import Connection
from openglm.serve.errors import ServeError
from openglm.serve.record import HEADER, record_of

IDLE_SECONDS = 0.1
"""How often to look whether calls have ended."""
KEEP_ALIVE_SECONDS = 75
BREAK_SECONDS = 1
"""For calls that are broken off to say so, where the time for draining was not enough."""


def bind(host: str, port: int) -> socket.socket:
    """An address of this machine for a server, which is taken before anything is loaded for it.

    Raises:
        UsageError: it is taken already, or not of this machine.
    """
    try:
        (family, kind, _, _, address), *_ = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            found.bind(address)
        except BaseException:
            found.close()
            raise
    except OSError as error:  # names that are not known, too
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} of {host} is in use", hint="--port takes another one"
            ) from error
        raise UsageError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="--host takes an address of this machine: 127.0.0.1, or 0.0.0.0 for all of them",
        ) from error
    return found


class Draining:
    """Counts calls; from `begin` on new ones are refused with 503, and those in work go on.

    Args:
        app: that answers them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.has_begun = False
        self.num_calls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a call, or refuses it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.has_begun:
            refusal = ServeError("unavailable", "the server is about to end", retry_after=5)
            response = error_response(scope["path"], refusal)
            response.headers["Connection"] = "close"
            record = record_of(scope)
            response.headers[HEADER] = record.id
            record.status = response.status_code
            await response(scope, receive, send)
            record.write(scope)
            return
        self.num_calls += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.num_calls -= 1

    async def finish(self, seconds: float) -> None:
        """Waits until no call is in work, for so long at most."""
        async with asyncio.timeout(seconds):
            while self.num_calls:
                await asyncio.sleep(IDLE_SECONDS)


class Server(uvicorn.Server):
    """Ends at the first signal once its calls have ended, at the second within a second.

    Args:
        app: that answers calls.
        drain_seconds: how long calls may take after the first signal.
    """

    def __init__(self, app: ASGIApp, drain_seconds: float) -> None:
        self.draining = Draining(app)
        self.drain_seconds = drain_seconds
        super().__init__(
            uvicorn.Config(
                self.draining,
                http=Connection,  # httptools, taken where it is installed, bounds no headers
                ws="none",  # there are none; a connection that changed over would never be closed
                log_config=None,
                access_log=False,  # `Record` says more, without the query string
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=BREAK_SECONDS,  # behind the time for draining
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See the class."""
        if self.draining.has_begun:
            self.should_exit = True  # ends what is left, within `BREAK_SECONDS`
            return
        self.draining.has_begun = True
        asyncio.get_running_loop().call_soon_threadsafe(self._begin_draining)

    def _begin_draining(self) -> None:
        self._drained = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        logger.info("ending: %d calls are in work", self.draining.num_calls)
        try:
            await self.draining.finish(self.drain_seconds)
        except TimeoutError:
            logger.warning("%d calls were broken off", self.draining.num_calls)
        self.should_exit = True
