"""Scoring answers for a blank: log-probabilities of several candidates under one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.engine.conventions import convention
from openglm.engine.decoder import Decoder
from openglm.engine.prompt import blank_prompt, continuation_prompt
from openglm.errors import RequestError
from openglm.model import Transformer
from openglm.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class ScoringPrompt:
    """What stands before the answers.

    Args:
        context_ids: (T,) read at once.
        mask_position: of the blank; with `counts_on`, of the last token before `head`.
        head: fed before each answer, one token at least: `sop`, or `sop` and a text.
        end_ids: tokens behind each answer that count in its score: GLM's cloze has `eop`.
        counts_on: positions go on from `mask_position` instead of staying at it.
        is_causal: each context token sees those before it, instead of all.
    """

    context_ids: list[int]
    mask_position: int
    head: list[int]
    end_ids: tuple[int, ...] = ()
    counts_on: bool = False
    is_causal: bool = False

    def positions(self, length: int) -> tuple[Tensor, Tensor]:
        """Positions and block positions of `length` tokens behind the context, each (length,)."""
        blocks = torch.arange(1, length + 1)
        return self.mask_position + blocks * self.counts_on, blocks


@dataclass(frozen=True, slots=True)
class Score:
    """One candidate.

    Args:
        score: sum of log p, divided by length ** length_penalty.
        log_probabilities: of every token, the end token included.
    """

    score: float
    log_probabilities: list[float]


def scoring_prompt(
    tokenizer: Tokenizer, config: ModelConfig, context: str, unidirectional: bool
) -> ScoringPrompt:
    """Lays out a context as the official evaluation of its model does.

    GLM and GLM-130B score answers for a blank, or left to right in a long blank of their own
    (`[gMASK] sop` text answer); only GLM's cloze counts the end token. Causal models go left to
    right.

    Raises:
        RequestError: not exactly one blank, where one is needed.
    """
    special, how = tokenizer.special, convention(tokenizer)
    if how.style == "causal":
        built = continuation_prompt(tokenizer, context)
        (place,) = built.mask_positions
        return ScoringPrompt(built.context_ids, place, [built.first_id], (), True, True)
    counts_on = config.position == "rotary"  # there are no block positions to count instead
    if unidirectional:
        before = [*how.ids_before(special), special.gmask_id]
        head = [special.sop_id, *tokenizer.encode(context)]
        return ScoringPrompt(before, len(before) - 1, head, (), counts_on)
    built = blank_prompt(tokenizer, context)
    if len(built.mask_positions) != 1:
        count = len(built.mask_positions)
        raise RequestError(f"the context has {count} blanks; score needs exactly one")
    (place,) = built.mask_positions
    counts_on = counts_on and built.context_ids[place] == built.long_id
    place = len(built.context_ids) - 1 if counts_on else place
    ends = (special.eop_id,) if how.style == "grow" else ()
    return ScoringPrompt(built.context_ids, place, [special.sop_id], ends, counts_on)


def check_choices(
    config: ModelConfig,
    prompt: ScoringPrompt,
    choices: Sequence[str],
    ids: Sequence[Sequence[int]],
) -> None:
    """Raises `RequestError` for a choice without a token, or without a position for each."""
    limit = config.max_position_embeddings
    for choice, tokens in zip(choices, ids, strict=True):
        if not tokens:
            raise RequestError(f"the choice {choice!r} has no tokens")
        fed = len(prompt.head) + len(tokens) + len(prompt.end_ids) - 1
        last = fed if not prompt.counts_on else prompt.mask_position + fed + 1
        if last > limit:
            raise RequestError(
                f"the choice {choice[:40]!r} needs {last} positions behind its context; "
                f"this model has at most {limit}"
            )


def score_choices(
    model: Transformer,
    prompt: ScoringPrompt,
    choices: Sequence[Sequence[int]],
    length_penalty: float = 0.0,
) -> list[Score]:
    """Sum of log p of each choice's tokens behind the context, which is computed once.

    Args:
        model: the network.
        prompt: what stands before.
        choices: token lists of one token at least, without `prompt.end_ids`.
        length_penalty: the sum is divided by (number of tokens) ** length_penalty.
    """
    ended = [[*choice, *prompt.end_ids] for choice in choices]
    *shared, last = prompt.head  # the logits behind the last are those of a choice's first token
    longest = max(map(len, ended))
    capacity = len(shared) + longest
    decoder = Decoder(model, torch.tensor([prompt.context_ids]), capacity, prompt.is_causal)
    positions, blocks = (values[None] for values in prompt.positions(capacity))  # (1, capacity)
    if shared:
        before = slice(len(shared))
        decoder.read(torch.tensor([shared]), positions[:, before], blocks[:, before])
    decoder.cache.expand(len(ended))
    inputs = torch.zeros((len(ended), longest), dtype=torch.int64)
    targets = torch.zeros_like(inputs)
    for row, choice in enumerate(ended):
        inputs[row, : len(choice)] = torch.tensor([last, *choice[:-1]])
        targets[row, : len(choice)] = torch.tensor(choice)
    behind = (values[:, len(shared) :].expand_as(inputs) for values in (positions, blocks))
    logits = decoder.feed(inputs, *behind)
    log_p = torch.log_softmax(logits, dim=-1).cpu().gather(-1, targets[..., None])[..., 0]
    scores = []
    for row, choice in enumerate(ended):
        tokens = log_p[row, : len(choice)]
        total = float(tokens.sum()) / len(choice) ** length_penalty
        scores.append(Score(total, tokens.tolist()))
    return scores


def verbalizer_logits(
    model: Transformer,
    context_ids: Sequence[int],
    mask_position: int,
    verbalizer_ids: Sequence[int],
    sop_id: int,
) -> Tensor:
    """Single-token cloze: the raw logits of `verbalizer_ids` behind `sop`, (n,) float32."""
    decoder = Decoder(model, torch.tensor([list(context_ids)]), 1)
    logits = decoder.feed_blank([sop_id], mask_position, 1)[-1]
    return logits[list(verbalizer_ids)].cpu()
