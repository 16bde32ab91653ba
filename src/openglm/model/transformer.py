"""The one configurable transformer: a stack of blocks over token embeddings.

    ids (B, T) ── word embedding ── positions ── dropout ── L x block ── norm ── hidden (B, T, C)

    block, by `residual`    h = attention, then the MLP likewise
        pre                 x + h(norm(x))
        sandwich            x + norm(h(norm(x)))
        deepnorm            a * n + h(n) with n = norm(x)

    logits = head(hidden)                                            (B, T, V), no bias

What varies between checkpoints is chosen in the constructors from `ModelConfig`.
Shape letters: docs/architecture.md.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.nn.attention import Attention
from openglm.nn.cache import KVCache, Prefix
from openglm.nn.context import Context, DenseContext, LayerContext
from openglm.nn.dropout import dropout
from openglm.nn.embedding import Embedding
from openglm.nn.masks import MaskSpec
from openglm.nn.mlp import mlp
from openglm.nn.norm import norm
from openglm.nn.positions import POSITIONS
from openglm.nn.rotary import Rotation


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); variants change the norms or `around`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_norm = norm(config)
        self.attention = Attention(config)
        self.attention_output_norm: nn.Module = nn.Identity()
        self.post_attention_norm = norm(config)
        self.mlp = mlp(config)
        self.mlp_output_norm: nn.Module = nn.Identity()

    def forward(
        self,
        x: Tensor,
        rotation: Rotation | None,
        context: LayerContext,
        query_source: Tensor | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); for the other arguments see `Attention.forward`."""

        def attend(normed: Tensor) -> Tensor:
            return self.attention(normed, rotation, context, query_source)  # type: ignore[no-any-return]

        x = self.around(attend, x, self.input_norm, self.attention_output_norm)
        return self.around(self.mlp, x, self.post_attention_norm, self.mlp_output_norm)

    def around(
        self, part: Callable[[Tensor], Tensor], x: Tensor, before: nn.Module, behind: nn.Module
    ) -> Tensor:
        """The residual connection around attention or MLP. (B, T, C) -> (B, T, C)."""
        return x + behind(part(before(x)))  # type: ignore[no-any-return]


class SandwichBlock(PreNormBlock):
    """A second norm on what attention and MLP give, before it is added (GLM-4-0414)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.attention_output_norm = norm(config)
        self.mlp_output_norm = norm(config)


class DeepNormBlock(PreNormBlock):
    """The residual carries the scaled, normalised tensor (DeepNet, section 3; GLM-130B, 2.1)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.residual_scale = config.residual_scale

    def around(
        self, part: Callable[[Tensor], Tensor], x: Tensor, before: nn.Module, behind: nn.Module
    ) -> Tensor:
        """See `PreNormBlock.around`."""
        x = before(x)
        return self.residual_scale * x + part(x)


BLOCKS: dict[str, type[PreNormBlock]] = {
    "pre": PreNormBlock,
    "sandwich": SandwichBlock,
    "deepnorm": DeepNormBlock,
}


class Transformer(nn.Module):
    """Token ids in, hidden states out; `logits` maps hidden states to the vocabulary."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.prefix: Prefix | None = None
        self.word_embeddings: nn.Module = Embedding(config.vocab_size, config.hidden_size)
        self.positions = POSITIONS[config.position](config)
        self.embedding_dropout = dropout(config.embedding_dropout)
        block = BLOCKS[config.residual]
        self.layers = nn.ModuleList(block(config) for _ in range(config.num_layers))
        self.final_norm = norm(config)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def head(self) -> Callable[[Tensor], Tensor]:
        """(..., C) hidden states -> (..., V) logits: a layer, or the word embedding backwards."""
        head: Callable[[Tensor], Tensor] | None = getattr(self, "lm_head", None)
        return head or self.word_embeddings.logits  # type: ignore[return-value]

    @property
    def output_weight(self) -> Tensor:
        """(V, C) of the head in floats, for training: its own, or the word embedding's."""
        head: nn.Module = getattr(self, "lm_head", self.word_embeddings)
        return head.weight  # type: ignore[return-value]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.final_norm.weight.device  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in; norms have it whatever is quantized."""
        return self.final_norm.weight.dtype  # type: ignore[return-value]

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
        context = DenseContext(mask, input_ids.shape[1], cache)
        return self.run(input_ids, position_ids, block_position_ids, context)

    def run(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        block_position_ids: Tensor,
        context: Context,
    ) -> Tensor:
        """`forward` in any context."""
        x = self.word_embeddings(input_ids)  # (B, T, C)
        x, rotation = self.positions(x, position_ids, block_position_ids)
        x = self.embedding_dropout(x)
        for index, layer in enumerate(self.layers):
            x = layer(x, rotation, context.layer(index))
        x = self.top(self.final_norm(x), position_ids, context)
        context.advance()
        return x

    def new_cache(self, batch_size: int, max_length: int) -> KVCache:
        """An empty cache of `max_length` tokens per row, with the prefix if there is one."""
        return KVCache(self.config, batch_size, max_length, self.dtype, self.device, self.prefix)

    def top(self, x: Tensor, position_ids: Tensor, context: Context) -> Tensor:
        """What comes after the final norm: nothing here. (B, T, C) -> (B, T, C)."""
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) hidden states -> (..., V) logits."""
        return self.head(hidden)
