"""Beam search as GLM's sequence-to-sequence evaluation does it (deterministic candidates).

Each step takes the best (1 + number of end tokens) * num_beams continuations of a row. An end token
among the first num_beams finishes a hypothesis with score = sum of log p / max(1, length) **
length_penalty, where the length counts neither `sop` nor the end token; the rest go on. A row is
done when its num_beams hypotheses are all better than the best that is still possible at the
present length.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from openglm.engine.decoder import Decoder
from openglm.engine.sampling import banned_ngrams

IMPOSSIBLE = -1e9
"""Start score of all beams but the first, which are copies of it (official value)."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Tokens without `sop` and end token, and the length-normalised score."""

    tokens: list[int]
    score: float


@dataclass(slots=True)
class _Finished:
    """The best hypotheses of one row."""

    capacity: int
    length_penalty: float
    best: list[Hypothesis] = field(default_factory=list)

    def score(self, log_probability: float, length: int) -> float:
        return float(log_probability / max(length, 1) ** self.length_penalty)

    def add(self, tokens: list[int], log_probability: float) -> None:
        self.best.append(Hypothesis(tokens, self.score(log_probability, len(tokens))))
        self.best.sort(key=lambda hypothesis: -hypothesis.score)
        del self.best[self.capacity :]

    def is_done(self, best_log_probability: float, length: int) -> bool:
        full = len(self.best) >= self.capacity
        return full and self.best[-1].score >= self.score(best_log_probability, length)


class _Row:
    """The beams of one row of the batch."""

    def __init__(self, num_beams: int, length_penalty: float) -> None:
        self.beams: list[list[int]] = [[] for _ in range(num_beams)]
        self.scores = [0.0, *[IMPOSSIBLE] * (num_beams - 1)]
        self.finished = _Finished(num_beams, length_penalty)
        self.done = False

    def advance(
        self, best: Tensor, flat: Tensor, vocab_size: int, end_ids: Collection[int]
    ) -> list[int]:
        """Takes one step; returns the beam that each of the new beams continues.

        Args:
            best: (n,) total log-probabilities of the candidates, best first.
            flat: (n,) int64, beam * V + token of each.
            vocab_size: V.
            end_ids: tokens that finish a hypothesis.
        """
        if self.done:
            return list(range(len(self.beams)))
        length = len(self.beams[0])
        live: list[tuple[int, int, float]] = []
        for rank, (score, index) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
            beam, token = divmod(index, vocab_size)
            if token not in end_ids:
                live.append((beam, token, score))
            elif rank < len(self.beams):
                self.finished.add(self.beams[beam], score)
            if len(live) == len(self.beams):
                break
        self.done = self.finished.is_done(float(best[0]), length)
        self.beams = [[*self.beams[beam], token] for beam, token, _ in live]
        self.scores = [score for _, _, score in live]
        return [beam for beam, _, _ in live]

    def best(self) -> Hypothesis:
        """The best hypothesis; unfinished beams count unless the row was done."""
        if not self.done:
            for tokens, score in zip(self.beams, self.scores, strict=True):
                self.finished.add(tokens, score)
        return self.finished.best[0]


def beam_search(
    decoder: Decoder,
    mask_positions: list[int],
    *,
    sop_id: int,
    end_ids: Collection[int],
    num_beams: int,
    max_tokens: int,
    length_penalty: float = 1.0,
    no_repeat_ngram_size: int = 0,
    min_tokens: int = 0,
    banned_ids: Collection[int] = (),
) -> list[Hypothesis]:
    """The best hypothesis for one blank in each row of the decoder's batch.

    Args:
        decoder: holds the contexts of B rows; its cache is used up.
        mask_positions: (B,) position of each row's blank.
        sop_id: start-of-piece token.
        end_ids: tokens that end a hypothesis.
        num_beams: beams per row.
        max_tokens: length limit.
        length_penalty: exponent of the length in the score.
        no_repeat_ngram_size: ban repeated n-grams within a beam; 0 = off.
        min_tokens: ban end tokens before this length.
        banned_ids: tokens that are never produced.
    """
    rows = [_Row(num_beams, length_penalty) for _ in mask_positions]
    decoder.cache.expand(num_beams)
    positions = torch.tensor(mask_positions).repeat_interleave(num_beams)[:, None]  # (B*K, 1)
    last = torch.full_like(positions, sop_id)
    for length in range(max_tokens):
        logits = decoder.feed(last, positions, torch.full_like(positions, length + 1))[:, -1]
        step = torch.log_softmax(logits, dim=-1).cpu()  # (B*K, V)
        blocked = {*banned_ids, *(end_ids if length < min_tokens else ())}
        step[:, sorted(blocked)] = -torch.inf
        for beam, tokens in enumerate(tokens for row in rows for tokens in row.beams):
            step[beam, banned_ngrams(tokens, no_repeat_ngram_size)] = -torch.inf
        scores = torch.tensor([row.scores for row in rows])  # (B, K)
        total = step.view(len(rows), num_beams, -1) + scores[..., None]  # (B, K, V)
        count = min((1 + len(end_ids)) * num_beams, total[0].numel())
        best, flat = total.flatten(1).topk(count)  # (B, count), index = beam * V + token
        parents = [
            index * num_beams + beam
            for index, row in enumerate(rows)
            for beam in row.advance(best[index], flat[index], total.shape[-1], end_ids)
        ]
        if all(row.done for row in rows):
            break
        decoder.cache.reorder(torch.tensor(parents, device=decoder.cache.keys[0].device))
        last = torch.tensor([[tokens[-1]] for row in rows for tokens in row.beams])
    return [row.best() for row in rows]
