"""`KVCache`: keys and values of all layers for incremental decoding, allocated once."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.errors import RequestError


@dataclass(frozen=True, slots=True)
class Prefix:
    """Trained keys and values in front of the tokens (P-Tuning v2), each (L, P, K, D)."""

    keys: Tensor
    values: Tensor

    def before(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, K, D) keys and values of a layer, with its own in front: (B, P + T, K, D)."""
        own = (
            part[layer].to(keys.dtype).expand(len(keys), -1, -1, -1)
            for part in (self.keys, self.values)
        )
        first, second = own
        return torch.cat([first, keys], dim=1), torch.cat([second, values], dim=1)


class KVCache:
    """Preallocated keys and values of one batch.

    Memory: 2 * num_cached_layers * batch_size * max_length * kv_heads * head_dim elements.

    Args:
        config: the architecture.
        batch_size: number of rows B.
        max_length: largest number of tokens per row, context included.
        dtype: dtype of keys and values.
        device: where they live.
        prefix: visible to every token, without a position, and not counted as tokens.

    Attributes:
        input_ids: (B, max_length) int64 on the CPU, the cached tokens, where the caller knows them.
        length: number of cached tokens.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch_size: int,
        max_length: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        prefix: Prefix | None = None,
    ) -> None:
        self.num_prefix = 0 if prefix is None else prefix.keys.shape[1]
        rows = self.num_prefix + max_length
        shape = (batch_size, rows, config.kv_heads, config.head_dim)
        self.keys = [
            torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_cached_layers)
        ]
        self.values = [torch.zeros_like(keys) for keys in self.keys]
        if prefix is not None:
            for layer in range(config.num_layers):
                self.keys[layer][:, : self.num_prefix] = prefix.keys[layer]
                self.values[layer][:, : self.num_prefix] = prefix.values[layer]
        self.input_ids = torch.zeros((batch_size, max_length), dtype=torch.int64)
        self.batch_size = batch_size
        self.max_length = max_length
        self.length = 0

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Stores (B, T, K, D) keys and values; returns prefix and tokens, (B, S, K, D)."""
        start = self.num_prefix + self.length
        end = start + keys.shape[1]
        all_keys, all_values = self.keys[layer], self.values[layer]
        all_keys[:, start:end] = keys
        all_values[:, start:end] = values
        return all_keys[:, :end], all_values[:, :end]

    def advance(self, num_tokens: int) -> None:
        """Counts `num_tokens` as cached, once every layer has appended them."""
        self.length += num_tokens

    def reserve(self, num_rows: int, num_tokens: int) -> None:
        """Checks that `num_tokens` more fit each of `num_rows`; raises `RequestError` if not."""
        if num_rows != self.batch_size:
            raise RequestError(
                f"the tokens have {num_rows} rows, the cache has {self.batch_size}",
                hint="make the cache with the batch size of the tokens",
            )
        if self.length + num_tokens > self.max_length:
            raise RequestError(
                f"the cache holds {self.length} of at most {self.max_length} tokens and cannot "
                f"take {num_tokens} more",
                hint="make it with a larger max_length",
            )

    def reorder(self, rows: Tensor) -> None:
        """Makes row i a copy of the present row `rows[i]` ((B,) int64), in every layer."""
        used = self.num_prefix + self.length
        for tensors in (self.keys, self.values):
            for tensor in tensors:
                tensor[:, :used] = tensor[rows, :used]
        self.input_ids = self.input_ids[rows.cpu()]

    def copy(self) -> KVCache:
        """A cache with the same content that grows on its own."""
        other = copy.copy(self)
        other.keys = [keys.clone() for keys in self.keys]
        other.values = [values.clone() for values in self.values]
        other.input_ids = self.input_ids.clone()
        return other

    def grow(self, max_length: int) -> None:
        """Makes room for `max_length` tokens per row; what is cached stays."""
        used = self.num_prefix + self.length
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                rows = (old.shape[0], self.num_prefix + max_length, *old.shape[2:])
                tensors[layer] = old.new_zeros(rows)
                tensors[layer][:, :used] = old[:, :used]
        ids = self.input_ids.new_zeros(self.batch_size, max_length)
        ids[:, : self.length] = self.input_ids[:, : self.length]
        self.input_ids, self.max_length = ids, max_length

    def select(self, rows: Tensor) -> None:
        """Keeps copies of the rows `rows` ((N,) int64) alone, which become the batch."""
        self.keys = [keys[rows] for keys in self.keys]
        self.values = [values[rows] for values in self.values]
        self.input_ids = self.input_ids[rows.cpu()]
        self.batch_size = len(rows)

    def expand(self, copies: int) -> None:
        """Repeats every row `copies` times in place: row i becomes rows i*copies ... ."""
        self.keys = [keys.repeat_interleave(copies, dim=0) for keys in self.keys]
        self.values = [values.repeat_interleave(copies, dim=0) for values in self.values]
        self.input_ids = self.input_ids.repeat_interleave(copies, dim=0)
        self.batch_size *= copies
