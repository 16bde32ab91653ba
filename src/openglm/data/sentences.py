"""Which tokens end a sentence, and cutting at those places."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SENTENCE_ENDS = ".?!;:\n。？！；…"
"""The official code uses two sets (with and without the Chinese marks); this is their union."""


def sentence_end_table(pieces: list[str]) -> NDArray[np.bool_]:
    """(V,) bool: True where the text of a token contains a sentence end."""
    return np.array([any(mark in piece for mark in SENTENCE_ENDS) for piece in pieces], dtype=bool)


def align_start(ends: NDArray[np.bool_], start: int, reach: int, leftwards: bool) -> int:
    """Moves `start` to the nearest place behind a sentence end, at most `reach` tokens away.

    Args:
        ends: (N,) bool, True where a token ends a sentence.
        start: index of the first token kept.
        reach: largest distance.
        leftwards: direction to look in.

    Returns:
        The new start, or `start` when there is no boundary within reach.
    """
    if leftwards:
        low = max(start - reach, 0)
        found = np.flatnonzero(ends[low:start])
        if len(found):
            return low + int(found[-1]) + 1
        return 0 if low == 0 else start
    found = np.flatnonzero(ends[start : start + reach])
    if len(found) and start + int(found[0]) + 1 < len(ends):
        return start + int(found[0]) + 1
    return start


def align_end(ends: NDArray[np.bool_], length: int, shortest: int) -> int:
    """The largest end at a sentence boundary in (shortest, length], or `length` without one."""
    found = np.flatnonzero(ends[shortest:length])
    return shortest + int(found[-1]) + 1 if len(found) else length
