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
    num_rows = len(mask_positions)
    decoder.cache.expand(num_beams)
    positions = torch.tensor(mask_positions).repeat_interleave(num_beams)[:, None]  # (B*K, 1)
    beams: list[list[int]] = [[] for _ in range(num_rows * num_beams)]
    scores = torch.full((num_rows, num_beams), IMPOSSIBLE)
    scores[:, 0] = 0.0
    finished = [_Finished(num_beams, length_penalty) for _ in range(num_rows)]
    done = [False] * num_rows
    last = torch.full_like(positions, sop_id)
    for length in range(max_tokens):
        logits = decoder.feed(last, positions, torch.full_like(positions, length + 1))[:, -1]
        step = torch.log_softmax(logits, dim=-1).cpu()  # (B*K, V)
        step[:, list(banned_ids)] = -torch.inf
        if length < min_tokens:
            step[:, list(end_ids)] = -torch.inf
        for beam, tokens in enumerate(beams):
            step[beam, banned_ngrams(tokens, no_repeat_ngram_size)] = -torch.inf
        total = step.view(num_rows, num_beams, -1) + scores[..., None]  # (B, K, V)
        candidates = min((1 + len(end_ids)) * num_beams, total[0].numel())
        best, flat = total.flatten(1).topk(candidates)
        kept = [0] * (num_rows * num_beams)
        chosen = [0] * (num_rows * num_beams)
        for row in range(num_rows):
            if done[row]:
                kept[row * num_beams : (row + 1) * num_beams] = [row * num_beams] * num_beams
                continue
            live = _advance(
                row, best[row], flat[row], total.shape[-1], beams, finished[row], end_ids
            )
            for slot, (beam, token, score) in enumerate(live):
                kept[row * num_beams + slot] = beam
                chosen[row * num_beams + slot] = token
                scores[row, slot] = score
            done[row] = finished[row].is_done(float(best[row, 0]), length)
        beams = [[*beams[beam], token] for beam, token in zip(kept, chosen, strict=True)]
        if all(done):
            break
        decoder.cache.reorder(torch.tensor(kept, device=decoder.cache.keys[0].device))
        last = torch.tensor(chosen)[:, None]
    for row in range(num_rows):
        if not done[row]:
            for slot in range(num_beams):
                finished[row].add(beams[row * num_beams + slot], float(scores[row, slot]))
    return [row.best[0] for row in finished]


def _advance(
    row: int,
    best: Tensor,
    flat: Tensor,
    vocab_size: int,
    beams: list[list[int]],
    finished: _Finished,
    end_ids: Collection[int],
) -> list[tuple[int, int, float]]:
    """Splits one row's candidates into finished hypotheses and live (beam, token, score)."""
    num_beams = finished.capacity
    live: list[tuple[int, int, float]] = []
    for rank, (score, index) in enumerate(zip(best.tolist(), flat.tolist(), strict=True)):
        beam, token = row * num_beams + index // vocab_size, index % vocab_size
        if token not in end_ids:
            live.append((beam, token, score))
        elif rank < num_beams:
            finished.add(beams[beam], score)
        if len(live) == num_beams:
            break
    return live
