"""`Burst`: a transport that keeps what is written until the event loop has gone round once."""

from __future__ import annotations

import asyncio
from typing import Any

MOST_BYTES = 1 << 16
"""Kept at most: what is more goes to the system at once, which says when it takes no more."""


class Burst:
    """Writes what one turn of the loop wrote as one; else it is the transport that it stands for.

    A step of the engine gives every stream a token, all in one turn. Their bytes go to the system
    behind each other and not between the work for one token and that for the next, so that readers
    on this machine are woken once for all; and events that come together cost one call.

    Args:
        transport: of the connection.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._kept: list[bytes] = []
        self._size = 0

    def write(self, data: bytes) -> None:
        """Keeps bytes for the end of this turn."""
        if not self._kept:
            self._loop.call_soon(self._flush)
        self._kept.append(data)
        self._size += len(data)
        if self._size > MOST_BYTES:
            self._flush()

    def close(self) -> None:
        """Closes the connection behind what was written."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._kept:
            whole, self._kept, self._size = b"".join(self._kept), [], 0
            self._transport.write(whole)
