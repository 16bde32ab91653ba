"""Who is logged in to the page: a random token in a cookie, and what it stands for kept here."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable

TOKEN_BYTES = 32
SECONDS = 12 * 3600.0
"""After which somebody must log in again."""
MOST = 4096
"""Sessions at once; one more ends the oldest."""


class Sessions:
    """Tokens and the ids of the keys that they stand for; lost when the server ends.

    Tokens are kept as digests: a look at this memory gives nobody a session.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: OrderedDict[bytes, tuple[str, float]] = OrderedDict()  # key id, until when

    def begin(self, key_id: str) -> str:
        """A new session's token."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        self._open[_digest(token)] = key_id, self._clock() + SECONDS
        while len(self._open) > MOST:
            self._open.popitem(last=False)
        return token

    def find(self, token: str) -> str | None:
        """The id of the key that a token stands for, if it does for any."""
        key_id, until = self._open.get(_digest(token), (None, 0.0))
        return key_id if self._clock() < until else None

    def end(self, token: str) -> None:
        """Ends a session, if there is one."""
        self._open.pop(_digest(token), None)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=32).digest()
