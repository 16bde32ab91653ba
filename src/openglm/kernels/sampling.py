"""Choosing a token from logits: compiled on a CPU, and each step in plain torch, its specification.

Filters take (V,) float32 probabilities, which need no sum of 1, and return them with what they drop
set to 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.kernels.cpu import module

SMALLEST = 1e-30
"""A temperature below this one draws as this one does: the likeliest, and what equals it."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What a token is drawn with, in this order; each over what is left by those before it.

    Args:
        temperature: divides the logits; above 0.
        top_k: see `top_k`, 0 = off.
        top_p: see `top_p`, 1 = off.
        min_p: see `min_p`, 0 = off.
        typical_p: see `typical_p`, 1 = off.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0


def log_sum_exp(logits: Tensor) -> float:
    """Logarithm of the sum of e^logits (V,); not finite if one is NaN or +inf, or all are -inf."""
    native, logits = module(), logits.float().cpu().contiguous()
    if native is not None:
        return float(native.log_sum_exp(logits.data_ptr(), len(logits)))
    return float(logits.logsumexp(0)) if logits.max() < torch.inf else float("nan")


def best(scores: Tensor) -> int:
    """The first of the largest of (V,) float32 numbers."""
    native, scores = module(), scores.contiguous()
    if native is None:
        return int(scores.argmax())
    return int(native.best(scores.data_ptr(), len(scores)))


def probabilities(scores: Tensor, by: Filters) -> Tensor:
    """(V,) float32, sum 1: what a token is drawn from.

    Args:
        scores: (V,) float32 logits on the CPU, -inf = impossible; one at least is not.
        by: the filters.
    """
    native, scores = module(), scores.contiguous()
    if native is None:
        return reference(scores, by)
    out = torch.empty_like(scores)
    native.probabilities(
        scores.data_ptr(),
        len(scores),
        max(by.temperature, SMALLEST),
        min(by.top_k, len(scores)),
        by.top_p,
        by.min_p,
        by.typical_p,
        out.data_ptr(),
    )
    return out


def draw(probabilities: Tensor, place: float) -> int:
    """The token at `place`, in [0, 1), of the distribution function of (V,) float32 probabilities.

    `torch.multinomial` draws a number for each of V tokens; inversion needs one.
    """
    native, probabilities = module(), probabilities.contiguous()
    if native is not None:
        return int(native.draw(probabilities.data_ptr(), len(probabilities), place))
    ends = probabilities.double().cumsum(0)  # token i has [ends[i - 1], ends[i])
    found = int(torch.searchsorted(ends, place * ends[-1], right=True))
    return found if found < len(ends) else int(probabilities.nonzero()[-1])  # rounded up


def reference(scores: Tensor, by: Filters) -> Tensor:
    """`probabilities` in plain torch."""
    left = tempered(scores, by.temperature)
    left = top_k(left, by.top_k)
    left = top_p(left, by.top_p)
    left = min_p(left, by.min_p)
    left = typical_p(left, by.typical_p)
    return left / left.sum()


def tempered(scores: Tensor, temperature: float) -> Tensor:
    """(V,) probabilities of logits divided by `temperature`, which is above 0."""
    # Differences to the best score cannot overflow, whatever the temperature.
    return torch.softmax(((scores - scores.max()).double() / temperature).float(), dim=-1)


def top_k(probabilities: Tensor, k: int) -> Tensor:
    """Keeps the k likeliest tokens and those as likely as the last of them; 0 = all."""
    if k == 0 or k >= len(probabilities):
        return probabilities
    kth = probabilities.topk(k).values[-1]
    return probabilities.masked_fill(probabilities < kth, 0)


def top_p(probabilities: Tensor, p: float) -> Tensor:
    """Keeps the likeliest tokens up to the one with which they sum to p (Holtzman et al. 2020)."""
    return probabilities if p == 1 else _smallest_set(probabilities, -probabilities, p)


def min_p(probabilities: Tensor, share: float) -> Tensor:
    """Keeps tokens at least `share` times as likely as the likeliest (Nguyen et al. 2024)."""
    if share == 0:
        return probabilities
    return probabilities.masked_fill(probabilities < share * probabilities.max(), 0)


def typical_p(probabilities: Tensor, p: float) -> Tensor:
    """Locally typical sampling (Meister et al. 2022, equation 12).

    Keeps the tokens with the least |-log p(token) - entropy| up to the one with which their
    probabilities sum to p; the entropy is that of what earlier filters left.
    """
    if p == 1:
        return probabilities
    shares = probabilities / probabilities.sum()
    entropy = torch.special.entr(shares).sum()
    return _smallest_set(probabilities, (shares.log() + entropy).abs(), p)  # inf where 0


def _smallest_set(probabilities: Tensor, rank: Tensor, p: float) -> Tensor:
    """Keeps tokens in the order of `rank` (V,), lowest first, until they have the share p."""
    order = rank.argsort(stable=True)
    ordered = probabilities[order] / probabilities.sum()
    before = ordered.cumsum(0) - ordered
    # The token that crosses the threshold is kept; so is the first, though p may round to 0.
    dropped = order[1:][before[1:] >= p]
    return probabilities.index_fill(0, dropped, 0)
