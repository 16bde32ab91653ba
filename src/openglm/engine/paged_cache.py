"""`PagedCache`: the memory of all pages, reserved once, and the context of a packed batch."""

from __future__ import annotations

import contextlib
import copy
import math
import mmap
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.errors import RequestError, suggest
from openglm.kernels.cpu import module
from openglm.kernels.cpu.pages import KIND_OF
from openglm.kernels.paged_attention import PAGE_TOKENS, Pages, Segments, attend, store
from openglm.log import logger
from openglm.model import Transformer

KV_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.int8,
}
"""What pages may hold. The compiled CPU kernels have no float16: there it runs in plain torch."""
SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One sequence's share of a forward call.

    Args:
        num_tokens: new ones.
        length: tokens behind it, the new ones included, without those of a trained prefix.
        visible: leading tokens that all of them see; 0 = causal.
        pages: its pages, first first.
    """

    num_tokens: int
    length: int
    visible: int
    pages: Sequence[int]


class PagedCache:
    """Pages of keys and values of every layer.

    Args:
        model: the network.
        memory_bytes: what all pages may take together; fixed from here on.
        kv_dtype: a key of `KV_DTYPES`, or "auto" for that of the network.

    Raises:
        RequestError: an unknown dtype, not even one page fits, or more than the system gives.
    """

    def __init__(self, model: Transformer, memory_bytes: int, kv_dtype: str = "auto") -> None:
        if kv_dtype != "auto" and kv_dtype not in KV_DTYPES:
            raise RequestError(
                f"unknown kv_dtype {kv_dtype!r}", hint=suggest(kv_dtype, ["auto", *KV_DTYPES])
            )
        self.dtype = model.dtype if kv_dtype == "auto" else KV_DTYPES[kv_dtype]
        self.device = model.device
        if self.device.type == "cpu" and module() is not None and self.dtype not in KIND_OF:
            fast = [name for name, dtype in KV_DTYPES.items() if dtype in KIND_OF]
            logger.warning(
                "the CPU kernels have no kv_dtype=%r, so attention runs in plain torch, which is "
                "slow; faster: %s",
                kv_dtype,
                ", ".join(fast),
            )
        self.prefix = model.prefix
        self.num_prefix = 0 if model.prefix is None else model.prefix.keys.shape[1]
        config = model.config
        self.page_bytes = page_bytes(config, self.dtype)
        if type(memory_bytes) is not int:
            raise RequestError(f"memory_bytes={memory_bytes!r} must be a whole number")
        self.num_pages = memory_bytes // self.page_bytes
        if self.num_pages < 1:
            raise RequestError(
                f"memory_bytes={memory_bytes} holds no page: one of {PAGE_TOKENS} tokens takes "
                f"{self.page_bytes} bytes here",
                hint="give more, or kv_dtype='int8'",
            )
        try:
            self.layers = [self._empty(config) for _ in range(config.num_cached_layers)]
        except (OSError, OverflowError, torch.OutOfMemoryError) as error:
            raise RequestError(
                f"memory_bytes={memory_bytes} is more than the system gives: {error}",
                hint="give less, or leave it out",
            ) from error

    def context(self, parts: Sequence[Part]) -> PagedContext:
        """What the new tokens of `parts`, one behind the other, attend to."""
        # A causal token sees all before it anyway, the trained prefix included.
        visible = [self.num_prefix + part.visible for part in parts]
        lengths = [self.num_prefix + part.length for part in parts]
        counts = [part.num_tokens for part in parts]
        return PagedContext(self.layers, _segments(counts, lengths, visible, parts))

    def write_prefix(self, pages: Sequence[int], start: int) -> None:
        """Writes the trained prefix, from its slot `start` on, into the first of `pages`."""
        assert self.prefix is not None
        count = self.num_prefix - start
        part = Part(count, self.num_prefix, 0, pages)
        segments = _segments([count], [self.num_prefix], [0], [part])
        for layer, keys, values in zip(
            self.layers, self.prefix.keys, self.prefix.values, strict=True
        ):
            store(layer, keys[start:].to(self.device), values[start:].to(self.device), segments)

    def copy(self) -> PagedCache:
        """A cache with the same content that grows on its own."""
        other = copy.copy(self)
        other.layers = [layer.copy() for layer in self.layers]
        return other

    def _empty(self, config: ModelConfig) -> Pages:
        heads, tokens, width = (self.num_pages, config.kv_heads), PAGE_TOKENS, config.head_dim
        keys, values = (
            _zeros((*heads, *page), self.dtype, self.device)
            for page in ((width, tokens), (tokens, width))
        )
        if self.dtype != torch.int8:
            return Pages(keys, values)
        scales = (_zeros((*heads, tokens), torch.float32, self.device) for _ in range(2))
        return Pages(keys, values, *scales)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, since what no query may see is multiplied by 0, and NaN would stay NaN.

    On a CPU a page takes memory once it is written to, not before. So it is the system's and not
    malloc's, which clears what it kept of freed blocks: all of it in a process that has trained
    (`openglm.train.allocator`).
    """
    if device.type != "cpu" or sys.platform == "win32":
        return torch.zeros(shape, dtype=dtype, device=device)
    count = math.prod(shape)
    area = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # a kernel without huge pages
            area.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(area, dtype=dtype, count=count).view(shape)


def pages_for(num_slots: int) -> int:
    """How many pages hold so many tokens, those of a trained prefix included."""
    return -(-num_slots // PAGE_TOKENS)


def page_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """One page in all layers: keys and values, and a float32 scale for each int8 head."""
    head = config.head_dim * dtype.itemsize + SCALE_BYTES * (dtype == torch.int8)
    return 2 * config.num_cached_layers * config.kv_heads * PAGE_TOKENS * head


@dataclass(frozen=True, slots=True)
class PagedContext:
    """A `Context` (see `openglm.nn.context`) of sequences in pages, packed into one row."""

    layers: list[Pages]
    segments: Segments

    def layer(self, index: int) -> PagedLayer:
        """See `Context.layer`."""
        return PagedLayer(self.layers[index], self.segments)

    def advance(self) -> None:
        """See `Context.advance`; the requests count their own tokens."""


@dataclass(frozen=True, slots=True)
class PagedLayer:
    """One layer of a `PagedContext`."""

    pages: Pages
    segments: Segments

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, dropout_probability: float
    ) -> Tensor:
        """See `LayerContext.attend`, with B = 1 and T = N."""
        assert dropout_probability == 0, "pages are for inference"
        store(self.pages, keys[0], values[0], self.segments)
        return attend(queries[0], self.pages, self.segments)[None]


def _segments(
    counts: Sequence[int], lengths: Sequence[int], visible: Sequence[int], parts: Sequence[Part]
) -> Segments:
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    widest = max(len(part.pages) for part in parts)
    table = torch.full((len(parts), widest), -1, dtype=torch.int32)
    for row, part in enumerate(parts):
        table[row, : len(part.pages)] = torch.tensor(part.pages)
    return Segments(starts, torch.tensor(lengths).int(), torch.tensor(visible).int(), table)
