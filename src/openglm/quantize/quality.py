"""How much worse a quantized model predicts text: perplexity of both, and KL between them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from openglm.config import ModelConfig
from openglm.memory import WIDTHS, linear_shapes
from openglm.quant.blockwise import Blockwise
from openglm.quantize.passages import UNSCORED, Passage
from openglm.scheme import Scheme

ROWS = 64
"""Tokens whose logits are held together: two float32 tables of 65,024 and 150,528 columns fit."""


def compared_bytes(config: ModelConfig) -> int:
    """What `compare` holds at most: both heads in float32, or a block; and the logits."""
    heads = 2 * config.vocab_size * config.hidden_size
    block = sum(rows * columns for rows, columns in linear_shapes(config))
    logits = 8 * ROWS * config.vocab_size  # of both, in float32 and twice that wide
    return WIDTHS["float32"] * (max(heads, block) + logits)


@dataclass(frozen=True, slots=True)
class Quality:
    """What was measured.

    Args:
        tokens: predicted.
        source_perplexity: exp of the mean cross entropy of the source.
        perplexity: of the quantized model.
        kl_mean: mean over tokens of KL(source || quantized), in nats.
        kl_p99: what it exceeds for one token in a hundred.
        same_top: share of tokens for which both find the same token likeliest.
    """

    tokens: int
    source_perplexity: float
    perplexity: float
    kl_mean: float
    kl_p99: float
    same_top: float

    @property
    def perplexity_change(self) -> float:
        """0.01 = one per cent worse."""
        return self.perplexity / self.source_perplexity - 1


@torch.no_grad()
def compare(
    config: ModelConfig,
    source: Mapping[str, Tensor],
    quantized: Mapping[str, Tensor],
    scheme: Scheme | None,
    passages: Sequence[Passage],
) -> Quality:
    """Both models on the same passages, one block at a time of either.

    Args:
        config: the architecture.
        source: plain weights.
        quantized: weights as `scheme` has them.
        scheme: of the second model.
        passages: what is predicted.
    """
    inputs = [passage.inputs for passage in passages]
    models = [Blockwise(config, source), Blockwise(config, quantized, scheme)]
    hidden = [torch.cat([h[0] for h in model.run(inputs)]) for model in models]  # (N, C) each
    targets = torch.cat([passage.targets for passage in passages])  # (N,)
    scored = targets != UNSCORED
    targets, hidden = targets[scored], [h[scored] for h in hidden]
    losses = torch.empty(2, len(targets), dtype=torch.float64)
    divergence = torch.empty(len(targets), dtype=torch.float64)
    same = 0
    with models[0].head() as first, models[1].head() as second:
        for start in range(0, len(targets), ROWS):
            rows = slice(start, start + ROWS)
            logits = [first(hidden[0][rows]), second(hidden[1][rows])]
            same += int((logits[0].argmax(-1) == logits[1].argmax(-1)).sum())
            log_p, log_q = (torch.log_softmax(x.double(), dim=-1) for x in logits)  # (n, V)
            wanted = targets[rows, None]
            losses[0, rows] = -log_p.gather(1, wanted)[:, 0]
            losses[1, rows] = -log_q.gather(1, wanted)[:, 0]
            divergence[rows] = kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
    before, after = (math.exp(loss) for loss in losses.mean(dim=1).tolist())
    p99 = float(torch.quantile(divergence, 0.99))
    return Quality(len(targets), before, after, float(divergence.mean()), p99, same / len(targets))
