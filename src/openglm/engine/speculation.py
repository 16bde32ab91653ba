"""Drafters guess the next tokens of a request: from its own text, or with a smaller model.

One forward call gives the logits behind every proposed token, and tokens are chosen from them one
after the other with the request's own sampler, until a choice differs from the guess. A guess is
certain of itself, so this is speculative sampling (Leviathan et al. 2023, algorithm 1) exactly: it
is accepted with probability p(guess), and otherwise the choice comes from p without it. The
sampler draws once per token as without guesses, so even the same seed gives the same text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from openglm.engine.decoder import Decoder
from openglm.engine.reader import PagedReader, reader_for
from openglm.memory import READ_AT_ONCE_COMPILED
from openglm.model import Transformer

PAUSES = (2, 8, 32, 128)
"""Steps without a guess after guesses that failed, once, twice, ... in a row. Text that never
repeats itself is guessed at in 4 of its first 50 steps and in 1 of 129 behind them."""
WORTH = 0.35
"""A further token is guessed if it is right with this chance: what a row more takes of a step, at
most. Of INT4 ChatGLM2-6B on AVX2, the slowest seen, it is 0.27 on average."""
MEMORY = 0.9
"""What an earlier guess counts of the one behind it."""
CANDIDATES = 64
"""Places looked at where the last two tokens stood before, the latest first."""
LONGEST = 16
"""Tokens compared at each: of places that agree in more, the latest is as good."""
SURE = 6
"""So many equal tokens are no chance: the text is being copied, whatever failed before."""


class Drafter(ABC):
    """Guesses for one request; `most` tokens at a time, 0 = never.

    How many tokens are worth a guess follows from how many were right lately. If not even one is,
    no more is guessed for a while, unless a drafter is sure.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._right = self._wrong = 0.5
        self._pause = 0
        self._failures = 0

    def propose(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]:
        """At most `limit` tokens that may follow `tokens`, often none.

        Args:
            tokens: of the track.
            passes: number of the track; another one is another text.
            limit: of what can be fed.
        """
        limit = min(limit, self.most, max(self._worth(), 1))
        if limit < 1:
            return []
        if self._pause and not self._is_sure(tokens, passes):
            self._pause -= 1
            return []
        self._pause = 0
        return self._guess(tokens, passes, limit)

    def learn(self, proposed: int, accepted: int) -> None:
        """Adapts to how many of the proposed tokens were right, up to the first that was not."""
        self._right = MEMORY * self._right + accepted
        self._wrong = MEMORY * self._wrong + (accepted < proposed)
        if accepted:
            self._failures = 0
        if not self._worth():
            self._pause = PAUSES[min(self._failures, len(PAUSES) - 1)]
            self._failures += 1

    def _worth(self) -> int:
        """How many tokens in a row are likely enough to be right."""
        chance = self._right / (self._right + self._wrong)
        return next((n for n in range(self.most) if chance ** (n + 1) < WORTH), self.most)

    @abstractmethod
    def forget(self) -> None:
        """Lets go of memory that can be had again."""

    def _is_sure(self, tokens: Sequence[int], passes: int) -> bool:
        """Whether to guess in spite of guesses that failed."""
        return False

    @abstractmethod
    def _guess(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]: ...


class LookupDrafter(Drafter):
    """Where the last tokens stood earlier in the text, proposes what followed there.

    Of several places, what was before must agree longest. An edited copy of some code repeats its
    own new lines too: the latest place would lead into those, and away from what is copied.
    """

    def __init__(self, most: int) -> None:
        super().__init__(most)
        self._passes = 0

    def forget(self) -> None:
        """Nothing: an index of the text is all there is."""

    def _is_sure(self, tokens: Sequence[int], passes: int) -> bool:
        is_patient = self._failures < len(PAUSES)  # or each step of some text would guess
        return is_patient and self._find(tokens, passes)[1] >= SURE

    def _guess(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]:
        place, _ = self._find(tokens, passes)
        return list(tokens[place : place + limit])

    def _find(self, tokens: Sequence[int], passes: int) -> tuple[int, int]:
        """Where to read on, and how many tokens before it are those at the end of the text.

        Without a place: the end, and 0.
        """
        self._index(tokens, passes)
        best, longest = len(tokens), 0
        for place in reversed(self._ends.get(tuple(tokens[-2:]), [])[-CANDIDATES:]):
            length = 2
            most = min(LONGEST, place)
            while length < most and tokens[place - 1 - length] == tokens[-1 - length]:
                length += 1
            if length > longest:
                best, longest = place, length
        return best, longest

    def _index(self, tokens: Sequence[int], passes: int) -> None:
        """Remembers behind which places each pair of tokens stood, the very end excepted."""
        if passes != self._passes:
            self._passes, self._indexed = passes, 2
            self._ends: dict[tuple[int, ...], list[int]] = {}
        for end in range(self._indexed, len(tokens)):
            self._ends.setdefault(tuple(tokens[end - 2 : end]), []).append(end)
        self._indexed = max(self._indexed, len(tokens))


class ModelDrafter(Drafter):
    """Proposes what a smaller causal model finds likeliest.

    Its keys and values are its own: besides the engine's memory, while the request has pages.

    Args:
        model: the smaller network, with the same vocabulary.
        most: tokens at a time.
        num_tokens: how long the text may become; beyond the model's positions nothing is guessed.
    """

    def __init__(self, model: Transformer, most: int, num_tokens: int) -> None:
        super().__init__(most)
        self.model = model
        self.room = min(num_tokens + most, model.config.max_position_embeddings)
        self.forget()

    def forget(self) -> None:
        """Lets go of the keys and values; the text is read again when a guess is due."""
        self._reader: Decoder | PagedReader | None = None
        self._read: list[int] = []

    def _guess(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]:
        limit = min(limit, self.room - len(tokens) + 1)
        if limit < 1:
            return []
        if self._reader is None:
            nothing = torch.zeros((1, 0), dtype=torch.int64)
            self._reader = reader_for(self.model)(self.model, nothing, self.room, True)
        reader, same = self._reader, zip(self._read, tokens[:-1], strict=False)
        shared = next((i for i, (old, new) in enumerate(same) if old != new), None)
        reader.rewind(min(len(self._read), len(tokens) - 1) if shared is None else shared)
        guesses: list[int] = []
        unread = list(tokens[reader.length :])
        while True:
            for start in range(0, len(unread), READ_AT_ONCE_COMPILED):
                logits = _feed(reader, unread[start : start + READ_AT_ONCE_COMPILED])
            guesses.append(int(logits.argmax()))
            if len(guesses) == limit:
                break
            unread = guesses[-1:]
        self._read = [*tokens, *guesses[:-1]]
        return guesses


def _feed(reader: Decoder | PagedReader, tokens: list[int]) -> Tensor:
    """Logits (V,) behind the last of some more tokens of a causal model."""
    ids = torch.tensor([tokens])
    positions = torch.arange(reader.length, reader.length + len(tokens))[None]
    return reader.feed(ids, positions, torch.zeros_like(ids))[0, -1]
