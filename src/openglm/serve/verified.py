"""Credentials that were verified a moment ago, so that a request does not wait for the database."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable

from openglm.serve.identity import Identity

SECONDS = 10.0
"""Within which a key that another process revoked stops working here, too."""
SIZE = 4096


class Verified:
    """The last credentials found good; only these, so guessing fills nothing. Safe for threads.

    Credentials are kept as digests: a look at this memory gives nobody a key.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._found: OrderedDict[bytes, tuple[Identity, float]] = OrderedDict()
        self.generation = 0

    def get(self, credential: str) -> Identity | None:
        """Whose credential it is, if that was found out a moment ago."""
        digest = _digest(credential)
        with self._lock:
            identity, until = self._found.get(digest, (None, 0.0))
            if identity is None or self._clock() >= until:
                self._found.pop(digest, None)
                return None
            self._found.move_to_end(digest)
            return identity

    def put(self, credential: str, identity: Identity, seconds: float, generation: int) -> None:
        """Remembers a credential.

        Args:
            credential: as it was sent.
            identity: whose it is.
            seconds: that it is good for; it is remembered for `SECONDS` at most.
            generation: as it was before the database was asked. If a key was revoked since then,
                the answer may be out of date and is not remembered.
        """
        with self._lock:
            if generation != self.generation:
                return
            self._found[_digest(credential)] = (identity, self._clock() + min(seconds, SECONDS))
            if len(self._found) > SIZE:
                self._found.popitem(last=False)

    def forget(self, key_id: str) -> None:
        """Drops all credentials of a key."""
        with self._lock:
            self.generation += 1
            for digest in [d for d, (who, _) in self._found.items() if who.key_id == key_id]:
                del self._found[digest]


def _digest(credential: str) -> bytes:
    return hashlib.blake2b(credential.encode(), digest_size=32).digest()
