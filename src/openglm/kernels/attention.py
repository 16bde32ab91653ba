"""Scaled dot-product attention: a plain reference, torch's fused kernel, and the choice.

In bf16 on a CPU the reference is the fast one, 2 to 4 times: its two batched matrix products run at
full bf16 speed, and torch's fused CPU kernel does not (benchmarks/attention_cpu.py). In float32
they are equal, and the fused kernel, which never holds the (T, S) matrix, is taken; so it is on
GPUs and where that matrix would be large.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import dropout, scaled_dot_product_attention

MAX_SCORE_ELEMENTS = 1 << 23
"""Largest B*H*T*S for which scores are materialised (32 MiB in float32); beyond it, page faults on
fresh memory cost more than the products save, unless the process keeps freed memory."""


def attention(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dropout_probability: float
) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v.

    Args:
        queries: (B, T, H, D).
        keys: (B, S, K, D); query head h uses key head h // (H / K).
        values: (B, S, K, D).
        bias: (1 or B, 1, T, S) float, added to the scores; None = every key is visible.
        dropout_probability: applied to the attention probabilities.

    Returns:
        (B, T, H, D) in the dtype of the queries.
    """
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))  # (B, H, T, D)
    num_scores = queries.shape[:3].numel() * keys.shape[2]
    bf16_on_cpu = queries.device.type == "cpu" and queries.dtype == torch.bfloat16
    kernel = reference if bf16_on_cpu and num_scores <= MAX_SCORE_ELEMENTS else fused
    return kernel(queries, keys, values, bias, dropout_probability).transpose(1, 2)  # (B, T, H, D)


def causal_attention(
    queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
) -> Tensor:
    """`attention` of T queries to as many keys, each to those up to its own; needs no bias."""
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))  # (B, H, T, D)
    mixed = scaled_dot_product_attention(
        queries,
        keys,
        values,
        dropout_p=dropout_probability,
        is_causal=True,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
    return mixed.transpose(1, 2)  # (B, T, H, D)


def reference(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dropout_probability: float
) -> Tensor:
    """The specification, on (B, H, T, D) and (B, K, S, D); the softmax is always in float32."""
    num_heads, num_queries, width = queries.shape[1:]
    # The queries of a group share keys: they are stacked, so that keys are never copied.
    scaled = (queries * width**-0.5).unflatten(1, (keys.shape[1], -1)).flatten(2, 3)
    scores = torch.matmul(scaled, keys.transpose(2, 3)).float()  # (B, K, H / K * T, S)
    scores = scores.view(-1, num_heads, num_queries, keys.shape[2])  # (B, H, T, S)
    if bias is not None:
        scores = scores + bias
    probabilities = torch.softmax(scores, dim=-1).to(values.dtype)
    if dropout_probability > 0:
        probabilities = dropout(probabilities, dropout_probability)
    stacked = probabilities.view(-1, keys.shape[1], scaled.shape[2], keys.shape[2])
    return torch.matmul(stacked, values).view_as(queries)  # (B, H, T, D)


def fused(
    queries: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, dropout_probability: float
) -> Tensor:
    """Torch's kernel, on (B, H, T, D) and (B, K, S, D); never holds the (T, S) matrix."""
    # In bf16 the most negative float32 would become -inf, and a blocked row NaN.
    lowest = torch.finfo(queries.dtype).min
    mask = None if bias is None else bias.clamp(min=lowest).to(queries.dtype)
    return scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout_probability,
        enable_gqa=queries.shape[1] != keys.shape[1],
    )
