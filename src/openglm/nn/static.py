"""A context for steps of one token in which no shape and no address ever changes.

What a CUDA graph records is replayed with the same tensors. So the place of the new token is a
tensor too. The Triton kernel reads it; other kernels look at a fixed window of the cache, in which
later places are blocked.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from openglm.kernels.attention import attention
from openglm.kernels.gpu.available import missing, takes
from openglm.nn.cache import KVCache
from openglm.nn.context import LayerContext


@dataclass(slots=True)
class StaticContext:
    """One new token per row behind what `cache` holds; see `Context`.

    The cache does not learn of the token: who replays steps counts them (`KVCache.advance`).

    Args:
        cache: whose tensors must stay where they are.
        window: leading places of the cache that are looked at, those of a trained prefix included.
    """

    cache: KVCache
    window: int
    place: Tensor = field(init=False)
    """(1,) int64: where the new keys and values go."""
    places: Tensor = field(init=False)
    """(window,) int64: 0, 1, 2 ..."""
    bias: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        device = self.cache.keys[0].device
        self.places = torch.arange(self.window, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.follow()

    def follow(self) -> None:
        """Moves the place of the new token behind what is cached now; call it before each step."""
        self.place.fill_(self.cache.num_prefix + self.cache.length)

    def layer(self, index: int) -> LayerContext:
        """See `Context.layer`."""
        return StaticLayer(self, index)

    def advance(self) -> None:
        """See `Context.advance`."""
        self.bias = None  # of this step's place

    def bias_of_step(self) -> Tensor:
        """(1, 1, 1, window) float32, made once for all layers of a step."""
        if self.bias is None:
            bias = torch.zeros(self.window, device=self.places.device)
            bias.masked_fill_(self.places > self.place, torch.finfo(torch.float32).min)
            self.bias = bias[None, None, None]
        return self.bias


@dataclass(frozen=True, slots=True)
class StaticLayer:
    """One layer of a `StaticContext`."""

    context: StaticContext
    index: int

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
    ) -> Tensor:
        """See `LayerContext.attend`; T is 1."""
        context, cache = self.context, self.context.cache
        stored = cache.keys[self.index], cache.values[self.index]  # (B, places, K, D)
        for tensor, new in zip(stored, (keys, values), strict=True):
            tensor.index_copy_(1, context.place, new.to(tensor.dtype))
        device, width = queries.device, queries.shape[-1]
        if device.type == "cuda" and not missing(device) and takes(width):
            from openglm.kernels.gpu.decode_attention import decode_attention

            return decode_attention(queries, *stored, context.place)
        seen_keys, seen_values = (tensor[:, : context.window] for tensor in stored)
        bias = context.bias_of_step()
        return attention(queries, seen_keys, seen_values, bias, dropout_probability)
