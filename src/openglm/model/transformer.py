"""The one configurable transformer: a stack of pre-norm blocks over token and position embeddings.

    ids (B, T) ── word embedding ─┐
    positions (B, T) ─ position ──┴─ + ─ dropout ─ L x [norm ─ attention ─ + ─ norm ─ MLP ─ +]
                                      ─ norm ─ hidden states (B, T, C)
    logits = hidden · word_embedding^T                               (B, T, V), no bias

What varies between checkpoints is chosen in the constructors from `ModelConfig`.
Shape letters: docs/architecture.md.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from openglm.config import ModelConfig
from openglm.nn.attention import Attention
from openglm.nn.cache import KVCache, LayerCache
from openglm.nn.dropout import dropout
from openglm.nn.masks import MaskSpec
from openglm.nn.mlp import MLP
from openglm.nn.positions import POSITIONS


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config)
        self.post_attention_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, bias: Tensor | None, cache: LayerCache | None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.attention(self.input_norm(x), bias, cache)
        return x + self.mlp(self.post_attention_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Token ids in, hidden states out; `logits` maps hidden states to the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = POSITIONS[config.position](config)
        self.embedding_dropout = dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        mask: MaskSpec,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T) int64, place in the corrupted text.
            block_position_ids: (B, T) int64, place inside the blank, 0 in the context.
            mask: who may attend to whom over the S = cached + T keys.
            cache: keys and values of earlier calls; the T new ones are added to it.

        Returns:
            (B, T, C) in the dtype of the parameters.
        """
        x = self.word_embeddings(input_ids)  # (B, T, C)
        x = self.embedding_dropout(x + self.positions(position_ids, block_position_ids))
        num_queries = input_ids.shape[1]
        num_cached = 0 if cache is None else cache.length
        bias = mask.bias(num_queries, num_cached + num_queries, x.device)
        for index, layer in enumerate(self.layers):
            x = layer(x, bias, None if cache is None else cache.layer(index))
        if cache is not None:
            cache.advance(num_queries)
        return self.final_norm(x)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) hidden states -> (..., V) logits through the tied word embedding."""
        return linear(hidden, self.word_embeddings.weight)
