"""Multi-head self-attention: projections and rotations around what a context mixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.nn.context import LayerContext
from openglm.nn.dropout import dropout
from openglm.nn.rotary import ROTATIONS, Rotation, no_rotation


class Attention(nn.Module):
    """softmax(q k^T / sqrt(D) + bias) v; groups of query heads may share keys and values."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, kv_width = config.hidden_size, config.kv_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, width, config.qkv_bias)
        self.k_proj = nn.Linear(width, kv_width, config.qkv_bias)
        self.v_proj = nn.Linear(width, kv_width, config.qkv_bias)
        self.o_proj = nn.Linear(width, width, config.linear_bias)
        self.rotate: Callable[[Tensor, Any], Tensor] = (
            ROTATIONS[config.rotary_pairing] if config.is_rotary else no_rotation
        )
        self.dropout_probability = config.attention_dropout
        self.output_dropout = dropout(config.hidden_dropout)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        context: LayerContext,
        query_source: Tensor | None = None,
    ) -> Tensor:
        """Attends from every token to those that `context` shows.

        Args:
            x: (B, T, C), what keys and values are made of.
            rotation: of the T tokens; None with learned positions.
            context: earlier keys and values, and the mask; the new ones are added to it.
            query_source: (B, T, C), what queries are made of; None = `x`.

        Returns:
            (B, T, C).
        """
        queries = self.q_proj(x if query_source is None else query_source)
        queries = queries.unflatten(-1, (-1, self.head_dim))  # (B, T, H, D)
        keys = self.k_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        values = self.v_proj(x).unflatten(-1, (-1, self.head_dim))  # (B, T, K, D)
        queries, keys = self.rotate(queries, rotation), self.rotate(keys, rotation)
        dropout_probability = self.dropout_probability if self.training else 0.0
        mixed = context.attend(queries, keys, values, dropout_probability)  # (B, T, H, D)
        mixed = mixed.flatten(2)  # (B, T, C)
        return self.output_dropout(self.o_proj(mixed))  # type: ignore[no-any-return]
