"""`Connection`: one of a bounded number, which does not wait for a request for ever.

uvicorn ends a connection that is idle behind an answer, but no other. Its `limit_concurrency` is
left alone: it refuses requests of those who have a key because of connections of those who have
none, and closes none of these.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from openglm.log import logger

HEADER_SECONDS = 30.0
"""From the begin of a connection, or of a further request on it, to the end of the headers.

A phone at the edge of its network sends 16 kB in that time; browsers, which open connections in
advance, open others when these have gone.
"""
MOST_CONNECTIONS = 4096
"""Far above what the engine and its queue can have in work."""
FILES_BESIDE = 4
"""Of the files that the process may have open, one of so many is kept for other things."""


_idle: dict[Connection, None] = {}
"""Of this process, those without a request in work; the one that is so for the longest in front."""


class Connection(H11Protocol):
    """Ends by itself while no request is in work on it, and sooner if others need its place."""

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request; if there are too many, the oldest idle one ends.

        So nobody is kept out by those who only hold connections: without a key, or with one that
        has no place for another call.
        """
        super().connection_made(transport)
        self._wait()
        self._look()
        if len(self.connections) > most_connections():
            oldest = next(iter(_idle))  # this one, if all others have requests in work
            del _idle[oldest]
            oldest.transport.abort()
            logger.warning("an idle connection was closed: %d are open", len(self.connections) - 1)

    def data_received(self, data: bytes) -> None:
        """Waits for the rest, unless what came was the end of a request's headers."""
        super().data_received(data)
        # Between requests; or answered, and what comes is the rest of a body that nobody reads.
        if self.conn.their_state is h11.IDLE or self.conn.our_state is h11.DONE:
            self._wait()
        else:
            self._stop_waiting()
        self._look()

    def on_response_complete(self) -> None:
        """Is idle, unless the next request is here already."""
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._stop_waiting()
        _idle.pop(self, None)
        super().connection_lost(exc)

    def _look(self) -> None:
        """Notes whether it is idle."""
        if self.cycle is None or self.cycle.response_complete:
            _idle.setdefault(self)
        else:
            _idle.pop(self, None)

    def _wait(self) -> None:
        if self._patience is None:
            self._patience = self.loop.call_later(HEADER_SECONDS, self.timeout_keep_alive_handler)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def most_connections() -> int:
    """How many there may be at once, of all that open files of this process allow."""
    try:
        import resource
    except ImportError:  # not on Windows
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, files - files // FILES_BESIDE)
