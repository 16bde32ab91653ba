"""Scoring answers for a blank: log-probabilities of several candidates under one context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.engine.decoder import Decoder
from openglm.model import Transformer


@dataclass(frozen=True, slots=True)
class UnidirectionalInput:
    """A choice laid out for left-to-right scoring; lists of T ids."""

    input_ids: list[int]
    position_ids: list[int]
    block_position_ids: list[int]
    context_length: int


def unidirectional_input(
    context_ids: Sequence[int],
    choice_ids: Sequence[int],
    *,
    cls_id: int,
    gmask_id: int,
    sop_id: int,
) -> UnidirectionalInput:
    """`[CLS] [gMASK]` as context, then `sop`, text and choice as one blank.

    This is how the official code turns GLM into a left-to-right model for zero-shot choices: the
    last len(choice_ids) tokens are scored, and no end token counts.
    """
    blank = [sop_id, *context_ids, *choice_ids[:-1]]
    return UnidirectionalInput(
        input_ids=[cls_id, gmask_id, *blank],
        position_ids=[0, 1, *(1 for _ in blank)],
        block_position_ids=[0, 0, *range(1, len(blank) + 1)],
        context_length=2,
    )


@dataclass(frozen=True, slots=True)
class Score:
    """One candidate.

    Args:
        score: sum of log p, divided by length ** length_penalty.
        log_probabilities: of every token, the end token included.
    """

    score: float
    log_probabilities: list[float]


def score_choices(
    model: Transformer,
    context_ids: Sequence[int],
    mask_position: int,
    choices: Sequence[Sequence[int]],
    sop_id: int,
    length_penalty: float = 0.0,
) -> list[Score]:
    """Multi-token cloze: sum of log p of each choice's tokens at `sop t1 ... tn`.

    The context is computed once and shared by the choices.

    Args:
        model: the network.
        context_ids: (T,) the context with the mask token.
        mask_position: index of the blank.
        choices: token lists, each with its end token where that counts (GLM's cloze: `eop`).
        sop_id: start-of-piece token.
        length_penalty: the sum is divided by (number of tokens) ** length_penalty.
    """
    longest = max(map(len, choices))
    decoder = Decoder(model, torch.tensor([list(context_ids)]), longest)
    decoder.cache.expand(len(choices))
    inputs = torch.zeros((len(choices), longest), dtype=torch.int64)
    targets = torch.zeros_like(inputs)
    for row, choice in enumerate(choices):
        inputs[row, : len(choice)] = torch.tensor([sop_id, *choice[:-1]])
        targets[row, : len(choice)] = torch.tensor(list(choice))
    blocks = torch.arange(1, longest + 1).expand_as(inputs)
    logits = decoder.feed(inputs, torch.full_like(inputs, mask_position), blocks)
    log_p = torch.log_softmax(logits, dim=-1).cpu().gather(-1, targets[..., None])[..., 0]
    scores = []
    for row, choice in enumerate(choices):
        tokens = log_p[row, : len(choice)]
        total = float(tokens.sum()) / len(choice) ** length_penalty
        scores.append(Score(total, tokens.tolist()))
    return scores


@torch.no_grad()
def score_unidirectional(
    model: Transformer,
    context_ids: Sequence[int],
    choices: Sequence[Sequence[int]],
    *,
    cls_id: int,
    gmask_id: int,
    sop_id: int,
    length_penalty: float = 0.0,
) -> list[Score]:
    """Scores each choice as the left-to-right continuation of a text without blanks.

    Args:
        model: the network.
        context_ids: (T,) the text.
        choices: token lists, without end tokens.
        cls_id: first token of a document.
        gmask_id: the long blank that everything is generated into.
        sop_id: start-of-piece token.
        length_penalty: the sum is divided by (number of tokens) ** length_penalty.
    """
    scores = []
    for choice in choices:
        built = unidirectional_input(
            context_ids, choice, cls_id=cls_id, gmask_id=gmask_id, sop_id=sop_id
        )
        head = Decoder(model, torch.tensor([built.input_ids[:2]]), len(built.input_ids) - 2)
        logits = head.feed_blank(built.input_ids[2:], 1, 1)[-len(choice) :]
        log_p = torch.log_softmax(logits, dim=-1).cpu()
        tokens = log_p.gather(-1, torch.tensor(choice)[:, None])[:, 0]
        scores.append(Score(float(tokens.sum()) / len(choice) ** length_penalty, tokens.tolist()))
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
