"""What tokens of one forward call attend to: earlier keys and values, and a mask over them.

The network hands queries, keys and values of each layer to a `LayerContext` and gets the mixed
values back. Where keys are stored, and which kernel mixes, is the context's affair: `DenseContext`
is a batch of equally long rows with a `KVCache` or none; the engine has one of pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor

from openglm.kernels.attention import attention, causal_attention
from openglm.kernels.gpu.available import missing
from openglm.nn.cache import KVCache, Prefix
from openglm.nn.masks import MaskSpec

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCKS_FROM = 1 << 22
"""Elements of a dense mask from which a GPU is given blocks instead (16 MiB in float32): below, the
mask costs less than compiling the kernel for it."""


class LayerContext(Protocol):
    """One layer's part of a `Context`."""

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
    ) -> Tensor:
        """Stores the new keys and values, and attends to all that are visible.

        Args:
            queries: (B, T, H, D).
            keys: (B, T, K, D), rotated.
            values: (B, T, K, D).
            dropout_probability: applied to the attention probabilities.

        Returns:
            (B, T, H, D).
        """
        ...


class Context(Protocol):
    """Everything that one forward call attends to."""

    def layer(self, index: int) -> LayerContext:
        """The part of layer `index`; each layer asks once."""
        ...

    def advance(self) -> None:
        """Counts the new tokens as cached, once every layer has stored them."""
        ...


@dataclass(slots=True)
class DenseContext:
    """B rows of T tokens behind what `cache` holds of them.

    Args:
        mask: who may attend to whom over the S = cached + T keys.
        num_queries: T.
        cache: keys and values of earlier calls; None = there are none, and none are kept.
        prefix: trained keys and values in front, if there is no cache, which holds them itself.
    """

    mask: MaskSpec
    num_queries: int
    cache: KVCache | None = None
    prefix: Prefix | None = None
    bias: Tensor | None = field(default=None, init=False)
    has_bias: bool = field(default=False, init=False)
    blocks: BlockMask | None = field(default=None, init=False)

    def layer(self, index: int) -> LayerContext:
        """See `Context.layer`."""
        return DenseLayer(self, index)

    def advance(self) -> None:
        """See `Context.advance`."""
        if self.cache is not None:
            self.cache.advance(self.num_queries)

    def mix(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
    ) -> Tensor:
        """Attention of (B, T, H, D) queries to all keys, (B, P + S, K, D) with P trained ones."""
        way = self.way(queries.device, len(queries), keys.shape[1], dropout_probability)
        if way == "causal":
            return causal_attention(queries, keys, values, dropout_probability)
        if way == "blocks":
            from openglm.kernels.gpu.prefix_attention import prefix_attention

            return prefix_attention(queries, keys, values, self.blocks_of(keys))
        return attention(queries, keys, values, self.bias_of(keys), dropout_probability)

    def way(
        self, device: torch.device, batch_size: int, num_keys: int, dropout_probability: float
    ) -> Literal["bias", "causal", "blocks"]:
        """How the mask reaches the kernel; `num_keys` is P + S.

        On a GPU a dense mask bars torch's flash kernel, and takes 4 bytes per query and key.
        """
        if device.type != "cuda" or self.mask.allowed is not None or self.num_queries == 1:
            return "bias"
        if self.mask.prefix_lengths is None and self.num_queries == num_keys:
            return "causal"
        is_large = batch_size * self.num_queries * num_keys >= BLOCKS_FROM
        return "blocks" if is_large and not dropout_probability and not missing(device) else "bias"

    def bias_of(self, keys: Tensor) -> Tensor | None:
        """(1 or B, 1, T, P + S) float32 over (B, P + S, K, D) keys, made once for all layers."""
        if not self.has_bias:
            num_keys = keys.shape[1] - self.num_prefix
            self.bias = self.mask.bias(self.num_queries, num_keys, keys.device, self.num_prefix)
            self.has_bias = True
        return self.bias

    def blocks_of(self, keys: Tensor) -> BlockMask:
        """The same mask in blocks, made once for all layers."""
        if self.blocks is None:
            from openglm.kernels.gpu.prefix_attention import block_mask

            lengths = self.mask.prefix_lengths
            if lengths is None:
                lengths = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
            self.blocks = block_mask(lengths + self.num_prefix, self.num_queries, keys.shape[1])
        return self.blocks

    @property
    def num_prefix(self) -> int:
        """P, trained keys in front of the tokens; see `Prefix`."""
        if self.cache is not None:
            return self.cache.num_prefix
        return 0 if self.prefix is None else self.prefix.keys.shape[1]


@dataclass(frozen=True, slots=True)
class DenseLayer:
    """One layer of a `DenseContext`."""

    context: DenseContext
    index: int

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
    ) -> Tensor:
        """See `LayerContext.attend`."""
        if self.context.cache is not None:
            keys, values = self.context.cache.append(self.index, keys, values)  # (B, S, K, D)
        elif self.context.prefix is not None:
            keys, values = self.context.prefix.before(self.index, keys, values)  # (B, P + T, K, D)
        return self.context.mix(queries, keys, values, dropout_probability)
