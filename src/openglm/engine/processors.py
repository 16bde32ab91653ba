"""What is done to the logits of the next token before one is drawn, each a function of its own.

They change `scores` in place: (V,) float32 logits on the CPU, -inf = impossible.
`openglm.engine.sampling` holds the order; `openglm.kernels.sampling` has what follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def add_bias(scores: Tensor, bias: Mapping[int, float]) -> None:
    """Adds a number to the logits of some ids."""
    for token, value in bias.items():
        scores[token] += value


def penalise_repeats(
    scores: Tensor,
    written: Sequence[int],
    repetition: float = 1.0,
    presence: float = 0.0,
    frequency: float = 0.0,
) -> None:
    """Makes tokens that were written less likely (or likelier).

    First the penalty of CTRL (Keskar et al. 2019, section 4.1; negative logits are multiplied, as
    everybody does since), then OpenAI's: logit - count * frequency - presence.

    Args:
        scores: (V,) float32.
        written: the tokens so far, in any order.
        repetition: divides positive logits; 1 = off.
        presence: subtracted once; 0 = off.
        frequency: subtracted for each occurrence; 0 = off.
    """
    if not written or (repetition, presence, frequency) == (1.0, 0.0, 0.0):
        return
    seen, counts = torch.unique(torch.tensor(written), return_counts=True)
    old = scores[seen]
    old = torch.where(old > 0, old / repetition, old * repetition)
    scores[seen] = old - counts * frequency - presence


def ban(scores: Tensor, tokens: Sequence[int]) -> None:
    """Makes tokens impossible."""
    if tokens:
        scores.index_fill_(0, torch.tensor(tokens), -torch.inf)


def banned_ngrams(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` already present in `tokens`."""
    if size == 0 or len(tokens) < size:
        return []
    prefix = tuple(tokens[len(tokens) - size + 1 :])
    return [
        tokens[start + size - 1]
        for start in range(len(tokens) - size + 1)
        if tuple(tokens[start : start + size - 1]) == prefix
    ]
