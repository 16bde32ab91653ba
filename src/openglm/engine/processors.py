"""What is done to the logits of the next token before one is drawn, each a function of its own.

Those that take `scores` change them in place: (V,) float32 logits on the CPU, -inf = impossible.
Those that take `probabilities` return the same with what they drop set to 0; they need no sum of 1.
`openglm.engine.sampling` holds the order.
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
    # The token that crosses the threshold is kept.
    dropped = order[ordered.cumsum(0) - ordered >= p]
    return probabilities.index_fill(0, dropped, 0)
