"""Multi-head self-attention over an optional key/value cache."""

from __future__ import annotations

from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.kernels.attention import attention
from openglm.nn.cache import LayerCache
from openglm.nn.dropout import dropout


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D) + bias) v, all projections with bias."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.heads = (config.num_attention_heads, config.head_dim)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.o_proj = nn.Linear(width, width)
        self.dropout_probability = config.attention_dropout
        self.output_dropout = dropout(config.hidden_dropout)

    def forward(self, x: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C); `bias` is (1 or B, 1, T, S) float or None."""
        queries = self.q_proj(x).unflatten(-1, self.heads)  # (B, T, H, D)
        keys = self.k_proj(x).unflatten(-1, self.heads)  # (B, T, H, D)
        values = self.v_proj(x).unflatten(-1, self.heads)  # (B, T, H, D)
        if cache is not None:
            keys, values = cache.append(keys, values)  # (B, S, H, D)
        dropout_probability = self.dropout_probability if self.training else 0.0
        mixed = attention(queries, keys, values, bias, dropout_probability)  # (B, T, H, D)
        mixed = mixed.flatten(2)  # (B, T, C)
        return self.output_dropout(self.o_proj(mixed))  # type: ignore[no-any-return]
