"""`Connection`: one of a bounded number, which does not wait for a request for ever.

What is written to it goes out in bursts; see `Burst`.

uvicorn ends a connection that is idle behind an answer, but no other. Its `limit_concurrency` is
left alone: it refuses requests of those who have a key because of connections of those who have
none, and closes none of these.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from openglm.log import logger
from openglm.serve.burst import Burst

HEADER_SECONDS = 30.0
"""From the begin of a connection, or of a further request on it, to the end of the headers.

A phone at the edge of its network sends 16 kB in that time; browsers, which open connections in
advance, open others when these have gone.
"""
HEADER_BYTES = 1 << 16
"""Of a request, that h11 reads at most; the guard allows fewer, and says so in its answer."""
MOST_CONNECTIONS = 4096
"""Far above what the engine and its queue can have in work."""
SECONDS_BETWEEN = 10.0
"""Of two lines of the log about connections that were closed."""
FILES_BESIDE = 4
"""Of the files that the process may have open, one of so many is kept for other things."""

_idle: dict[Connection, None] = {}
"""Of this process, those without a request in work; the one that is so for the longest in front."""


class Framing(h11.Connection):
    """Frames the pieces of a stream itself; h11 would look up states that do not change."""

    _is_chunked = False

    def send(self, event: h11.Event) -> bytes | None:  # type: ignore[override]
        """See h11."""
        if type(event) is h11.Data and event.data and self._is_chunked:
            return b"%x\r\n%b\r\n" % (len(event.data), event.data)
        found = super().send(event)
        head = found.lower() if found and type(event) is h11.Response else b""
        self._is_chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        return found


class Connection(H11Protocol):
    """Ends by itself while no request is in work on it, and sooner if others need its place."""

    _patience: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.conn = Framing(h11.SERVER, HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request; if there are too many, the oldest idle one ends.

        So nobody is kept out by those who only hold connections: without a key, or with one that
        has no place for another call.
        """
        super().connection_made(cast(asyncio.Transport, Burst(transport)))
        self._wait()
        self._look()
        if len(self.connections) > most_connections():
            oldest = next(iter(_idle))  # this one, if all others have requests in work
            del _idle[oldest]
            oldest.transport.abort()
            _crowding.note(len(self.connections) - 1)

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


class Crowding:
    """Says that idle connections make room for others, without a line for each."""

    def __init__(self) -> None:
        self._num_closed = 0
        self._said = -math.inf

    def note(self, num_open: int) -> None:
        """One more was closed; so many are open."""
        self._num_closed += 1
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN:
            logger.warning(
                "%d idle connections closed to make room: %d are open", self._num_closed, num_open
            )
            self._num_closed, self._said = 0, now


_crowding = Crowding()


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
