"""Beam search with deterministic candidates, ranked as each model's official code does.

Each step takes the best (1 + number of end tokens) * num_beams continuations of a row. End tokens
among the first num_beams finish hypotheses, the others that are no end tokens go on. A row is done
when its num_beams hypotheses all score better than what is still possible; `BeamRule` says how.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from openglm.engine.beam_rules import GLM, BeamRule
from openglm.engine.decoder import Decoder
from openglm.engine.processors import banned_ngrams
from openglm.engine.sampling import check_logits

IMPOSSIBLE = -1e9
"""Start score of all beams but the first, which are copies of it (official value)."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """Tokens without first and end token, and the length-normalised score."""

    tokens: list[int]
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamSettings:
    """What a search is asked for; `SamplingParams` explains the first five.

    Args:
        end_ids: tokens that end a hypothesis.
        banned_ids: tokens that are never written.
        rule: how hypotheses are ranked.
    """

    num_beams: int
    max_tokens: int
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    end_ids: Collection[int]
    banned_ids: Collection[int] = ()
    rule: BeamRule = GLM


class _Row:
    """The beams of one row of the batch.

    Args:
        context_ids: what the row has read, its first token included.
        settings: of the search.
    """

    def __init__(self, context_ids: Sequence[int], settings: BeamSettings) -> None:
        self.settings = settings
        self.counted = len(context_ids) if settings.rule.counts_context else 0
        self.beams: list[list[int]] = [[] for _ in range(settings.num_beams)]
        self.scores = [0.0, *[IMPOSSIBLE] * (settings.num_beams - 1)]
        self.finished: list[Hypothesis] = []
        self.done = False
        size = settings.no_repeat_ngram_size
        looks_back = {"none": 0, "edge": size - 1, "all": len(context_ids)}
        back = looks_back[settings.rule.ngram_context] if size else 0
        self.repeatable = list(context_ids[len(context_ids) - back :])

    def advance(self, best: list[float], flat: list[int], vocab_size: int) -> list[int]:
        """Takes one step; returns the beam that each of the new beams continues.

        Args:
            best: (n,) total log-probabilities of the candidates, best first.
            flat: (n,) beam * V + token of each.
            vocab_size: V.
        """
        if self.done:
            return list(range(len(self.beams)))
        settings = self.settings
        live: list[tuple[int, int, float]] = []
        for rank, (score, index) in enumerate(zip(best, flat, strict=True)):
            beam, token = divmod(index, vocab_size)
            if token in settings.end_ids:
                if rank < settings.num_beams or settings.rule.is_opennmt:
                    self._finish(self.beams[beam], score, settings.rule.counts_end)
            elif len(live) < settings.num_beams:
                live.append((beam, token, score))
            else:
                break
        possible = self._score(best[0], len(self.beams[0]))
        self.beams = [[*self.beams[beam], token] for beam, token, _ in live]
        self.scores = [score for _, _, score in live]
        if settings.rule.counts_end:
            possible = self._score(self.scores[0], len(self.beams[0]))
        is_full = len(self.finished) == settings.num_beams
        self.done = is_full and self.finished[-1].score >= possible
        return [beam for beam, _, _ in live]

    def blocked(self) -> list[list[int]]:
        """Tokens that each beam must not go on with: they would repeat an n-gram."""
        size = self.settings.no_repeat_ngram_size
        return [banned_ngrams([*self.repeatable, *tokens], size) for tokens in self.beams]

    def hypotheses(self) -> list[Hypothesis]:
        """At most num_beams, best first; unfinished beams count unless the row is done."""
        if not self.done:
            for tokens, score in zip(self.beams, self.scores, strict=True):
                self._finish(tokens, score, False)
        return self.finished

    def _score(self, log_probability: float, num_tokens: int) -> float:
        settings = self.settings
        length = self.counted + num_tokens
        return settings.rule.score(log_probability, length, settings.length_penalty)

    def _finish(self, tokens: list[int], log_probability: float, with_end: bool) -> None:
        score = self._score(log_probability, len(tokens) + with_end)
        self.finished.append(Hypothesis(tokens, score))
        self.finished.sort(key=lambda hypothesis: -hypothesis.score)
        del self.finished[self.settings.num_beams :]


def beam_search(
    decoder: Decoder,
    context_ids: Sequence[Sequence[int]],
    mask_positions: Sequence[int],
    settings: BeamSettings,
    counts_on: bool = False,
) -> list[list[Hypothesis]]:
    """The best hypotheses for one blank in each row of the decoder's batch, best first.

    Args:
        decoder: has read all but the last token of each context; its cache is used up.
        context_ids: (B,) lists of ids; the last of each (`sop`) is fed first.
        mask_positions: (B,) position of each row's blank.
        settings: of the search.
        counts_on: positions go on from the blank's, instead of staying at it.
    """
    rows = [_Row(ids, settings) for ids in context_ids]
    num_beams = settings.num_beams
    decoder.cache.expand(num_beams)
    positions = torch.tensor(mask_positions).repeat_interleave(num_beams)[:, None]  # (B*K, 1)
    last = torch.tensor([ids[-1] for ids in context_ids]).repeat_interleave(num_beams)[:, None]
    for length in range(settings.max_tokens):
        blocks = torch.full_like(positions, length + 1)
        logits = decoder.feed(last, positions + blocks * counts_on, blocks)[:, -1].cpu()
        check_logits(logits, f"token {length + 1} of a blank")
        step = _log_probabilities(logits, rows, length)  # (B*K, V)
        scores = torch.tensor([row.scores for row in rows])  # (B, K)
        total = step.view(len(rows), num_beams, -1) + scores[..., None]  # (B, K, V)
        count = min((1 + len(settings.end_ids)) * num_beams, total[0].numel())
        best, flat = total.flatten(1).topk(count)  # (B, count), index = beam * V + token
        parents = [
            index * num_beams + beam
            for index, row in enumerate(rows)
            for beam in row.advance(best[index].tolist(), flat[index].tolist(), total.shape[-1])
        ]
        if all(row.done for row in rows):
            break
        decoder.cache.reorder(torch.tensor(parents, device=decoder.cache.keys[0].device))
        last = torch.tensor([[tokens[-1]] for row in rows for tokens in row.beams])
    return [row.hypotheses() for row in rows]


def _log_probabilities(logits: torch.Tensor, rows: list[_Row], length: int) -> torch.Tensor:
    """Log p of the next token of every beam, -inf where it is blocked. (B*K, V) -> (B*K, V)."""
    settings = rows[0].settings
    blocked = torch.zeros_like(logits, dtype=torch.bool)
    too_early = settings.end_ids if length < settings.min_tokens else ()
    blocked[:, sorted({*settings.banned_ids, *too_early})] = True
    for beam, tokens in enumerate(banned for row in rows for banned in row.blocked()):
        blocked[beam, tokens] = True
    if settings.rule.is_opennmt:
        logits = logits.masked_fill(blocked, -torch.inf)
    return torch.log_softmax(logits, dim=-1).masked_fill(blocked, -torch.inf)
