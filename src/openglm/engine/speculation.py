"""`Drafter`: guesses the next tokens from the request's own text (prompt lookup).

Where the last tokens of a text stood earlier in it, what followed there is proposed. One forward
call gives the logits behind every proposed token, and tokens are chosen from them one after the
other with the request's own sampler, until a choice differs from the guess. A guess is certain of
itself, so this is speculative sampling (Leviathan et al. 2023, algorithm 1) exactly: it is
accepted with probability p(guess), and otherwise the choice comes from p without it. The sampler
draws once per token as without guesses, so even the same seed gives the same text.
"""

from __future__ import annotations

from collections.abc import Sequence

SIZES = (3, 2)
"""Lengths of the n-grams that are looked up, the more telling first."""
PAUSES = (2, 8, 32, 128)
"""Steps without a guess after guesses that failed, once, twice, ... in a row. Text that never
repeats itself is guessed at in 4 of its first 50 steps and in 1 of 129 behind them."""


class Drafter:
    """Guesses for one request; `most` tokens at a time, 0 = never.

    One token is guessed at first; a width that was accepted whole doubles. When less than half is
    accepted, it halves, and no more is guessed for a while.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._passes = 0
        self._width = min(1, most)
        self._pause = 0
        self._failures = 0

    def propose(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens`, often none.

        Args:
            tokens: of the track.
            passes: number of the track; another one is another text.
            limit: of what can be fed.
        """
        limit = min(limit, self._width)
        if limit < 1:
            return []
        self._index(tokens, passes)
        if self._pause:
            self._pause -= 1
            return []
        for size in SIZES:
            place = self._ends.get(tuple(tokens[-size:]))
            if place is not None:
                return list(tokens[place : place + limit])
        return []

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapts to how many of the proposed tokens were right."""
        if 2 * accepted < proposed:
            self._width = max(1, self._width // 2)
            self._pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._failures += 1
        elif accepted == proposed:
            self._width = min(2 * self._width, self.most)
            self._failures = 0

    def _index(self, tokens: Sequence[int], passes: int) -> None:
        """Remembers behind which place each n-gram last stood, the very end excepted."""
        if passes != self._passes:
            self._passes, self._indexed = passes, 0
            self._ends: dict[tuple[int, ...], int] = {}
        for end in range(self._indexed, len(tokens)):
            for size in SIZES:
                if end >= size:
                    self._ends[tuple(tokens[end - size : end])] = end
        self._indexed = len(tokens)
