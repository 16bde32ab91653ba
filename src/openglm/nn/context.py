"""What tokens of one forward call attend to: earlier keys and values, and a mask over them.

The network hands queries, keys and values of each layer to a `LayerContext` and gets the mixed
values back. Where keys are stored, and which kernel mixes, is the context's affair: `DenseContext`
is a batch of equally long rows with a `KVCache` or none; the engine has one of pages.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from openglm.kernels.attention import attention
from openglm.nn.cache import KVCache
from openglm.nn.masks import MaskSpec


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
    """

    mask: MaskSpec
    num_queries: int
    cache: KVCache | None = None
    bias: Tensor | None = field(default=None, init=False)
    has_bias: bool = field(default=False, init=False)

    def layer(self, index: int) -> LayerContext:
        """See `Context.layer`."""
        return DenseLayer(self, index)

    def advance(self) -> None:
        """See `Context.advance`."""
        if self.cache is not None:
            self.cache.advance(self.num_queries)

    def bias_of(self, keys: Tensor) -> Tensor | None:
        """(1 or B, 1, T, P + S) float32 over (B, P + S, K, D) keys, made once for all layers."""
        if not self.has_bias:
            num_prefix = 0 if self.cache is None else self.cache.num_prefix
            num_keys = keys.shape[1] - num_prefix
            self.bias = self.mask.bias(self.num_queries, num_keys, keys.device, num_prefix)
            self.has_bias = True
        return self.bias


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
        return attention(queries, keys, values, self.context.bias_of(keys), dropout_probability)
