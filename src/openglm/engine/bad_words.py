"""`BadWords`: texts that are never written, however they would be cut into tokens.

Others forbid the tokens into which they cut a text themselves, and the model writes it with other
ones. Here a token is impossible if the text would come to contain a bad word with it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from torch import Tensor

from openglm.engine.processors import ban


class BadWords:
    """A rule of a `Sampler`.

    Args:
        words: the texts; an occurrence inside a longer word counts too.
        spellings: (V,) the bytes that each token adds.
    """

    def __init__(self, words: Sequence[str], spellings: Sequence[bytes]) -> None:
        self.words = [word.encode() for word in words]
        self.spellings = spellings
        self.order = sorted(range(len(spellings)), key=spellings.__getitem__)
        self.sorted = [spellings[token] for token in self.order]
        whole = (t for t, s in enumerate(spellings) if any(word in s for word in self.words))
        self.always = list(whole)

    def __call__(self, scores: Tensor, blank: Sequence[int]) -> None:
        """See `openglm.engine.sampling.Rule`."""
        ban(scores, [token for token in self.banned(blank) if token < len(scores)])

    def banned(self, blank: Sequence[int]) -> list[int]:
        """The tokens that would complete a bad word behind those of `blank`."""
        found = list(self.always)
        end = self._end(blank)
        for word in self.words:
            for size in range(1, min(len(word) - 1, len(end)) + 1):
                if end.endswith(word[:size]):
                    found += self._that_begin_with(word[size:])
        return found

    def _end(self, blank: Sequence[int]) -> bytes:
        """The last bytes of the blank, as many as a bad word can have before its last one."""
        wanted = max(map(len, self.words)) - 1
        end = b""
        for token in reversed(blank):
            if len(end) >= wanted:
                break
            end = self.spellings[token] + end
        return end

    def _that_begin_with(self, start: bytes) -> list[int]:
        first = place = bisect_left(self.sorted, start)
        while place < len(self.sorted) and self.sorted[place].startswith(start):
            place += 1
        return self.order[first:place]
