"""`GLMCache`: our `KVCache` as the `past_key_values` of transformers."""

from __future__ import annotations

from torch import Tensor
from transformers.cache_utils import Cache

from openglm.model import Transformer
from openglm.nn.cache import KVCache

FIRST_ROOM = 64
"""Tokens that fit beyond the first ones before the cache has to grow; it doubles then."""


class GLMCache(Cache):  # type: ignore[misc]
    """Keys and values of all layers, made at the first forward call and growing as needed.

    Attributes:
        store: the keys, values and tokens; None before the first call.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.store: KVCache | None = None

    def reserve(self, network: Transformer, num_rows: int, num_tokens: int) -> KVCache:
        """The store, with room for `num_tokens` more in each of `num_rows`.

        Raises:
            RequestError: the cache holds another number of rows.
        """
        if self.store is None:
            self.store = network.new_cache(num_rows, num_tokens + FIRST_ROOM)
        needed = self.store.length + num_tokens
        if needed > self.store.max_length:
            self.store.grow(max(needed, 2 * self.store.max_length))
        self.store.reserve(num_rows, num_tokens)
        return self.store

    def __len__(self) -> int:
        return 0 if self.store is None else len(self.store.keys)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of cached tokens."""
        return 0 if self.store is None else self.store.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: the cache grows."""
        return -1

    @property
    def batch_size(self) -> int:
        """Number of rows, -1 before the first call."""
        return -1 if self.store is None else self.store.batch_size

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes a copy of row `beam_idx[i]` (beam search)."""
        if self.store is not None:
            self.store.reorder(beam_idx.to(self.store.keys[0].device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row in place."""
        if self.store is not None:
            self.store.expand(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the given rows alone."""
        if self.store is not None:
            self.store.select(indices.to(self.store.keys[0].device))

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last tokens; the number is negative or 0, as in transformers."""
        length = self.get_seq_length()
        if not -length <= tokens_to_remove <= 0:
            raise ValueError(
                f"crop({tokens_to_remove}) of {length} tokens: it takes -{length} to 0, how many "
                "to remove"
            )
        if self.store is not None:
            self.store.length += tokens_to_remove

    def reset(self) -> None:
        """Forgets everything."""
        self.store = None
