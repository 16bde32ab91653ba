"""A request's body, counted and timed while the application receives it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from starlette.types import Message, Receive

MEGABYTE = 1_000_000


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """How large a body may be, and how long it may take.

    Args:
        bytes: of any body. Megabytes are decimal here, as in the APIs' documentation.
        file_bytes: of one under `file_paths`.
        file_paths: paths of uploads; what is below them counts, too. A path written in another way
            than the router's has the smaller limit.
        seconds: spent waiting for the body, in all.
    """

    bytes: int = 32 * MEGABYTE
    file_bytes: int = 100 * MEGABYTE
    file_paths: Sequence[str] = ("/v1/files", "/api/paas/v4/files")
    seconds: float = 120.0

    def of(self, path: str) -> int:
        """The limit of a path, in bytes."""
        is_file = any(path == own or path.startswith(own + "/") for own in self.file_paths)
        return self.file_bytes if is_file else self.bytes


class BodyRefused(Exception):
    """Ends an application that receives a body which will not be taken."""


class Body:
    """Stands between the server and the application's `receive`.

    Args:
        receive: the server's.
        max_bytes: that are passed on.
        seconds: to wait; time that the application takes for itself is not counted.
    """

    def __init__(self, receive: Receive, max_bytes: int, seconds: float) -> None:
        self._receive = receive
        self._bytes_left = max_bytes
        self._seconds_left = seconds
        self._is_complete = False
        self.refused_with: int | None = None  # HTTP status

    async def receive(self) -> Message:
        """The next message.

        Raises:
            BodyRefused: the body is too large (413) or too slow (408).
        """
        if self._is_complete:  # what follows is the end of the connection, however late
            return await self._receive()
        begin = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds_left):
                message = await self._receive()
        except TimeoutError:
            raise self._refusal(408) from None
        self._seconds_left -= time.monotonic() - begin
        self._bytes_left -= len(message.get("body", b""))
        if self._bytes_left < 0:
            raise self._refusal(413)
        self._is_complete = not message.get("more_body", False)
        return message

    def _refusal(self, status: int) -> BodyRefused:
        self.refused_with = status
        return BodyRefused(status)
