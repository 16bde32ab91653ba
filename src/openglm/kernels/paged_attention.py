"""Attention over keys and values in pages: sequences of any lengths in one packed batch.

The N new tokens of all S sequences lie behind each other; no token sees another sequence. A
sequence's keys are in pages of `PAGE_TOKENS` slots anywhere in memory, and `Segments.pages` says
where (PagedAttention, Kwon et al. 2023, section 4). The compiled kernels do it on a CPU
(`openglm.kernels.cpu.pages`), Triton on a GPU (`openglm.kernels.gpu.paged_attention`). The
reference in plain torch goes sequence by sequence with the kernel that a sequence alone would use.
With each of them, what a query gets does not depend on what else is in the batch.

Keys of a page lie with the tokens innermost, so that a vector register holds the same element of
many keys; values lie with the elements innermost, for the same reason.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from openglm.kernels.attention import MAX_SCORE_ELEMENTS, attention
from openglm.kernels.cpu import pages as compiled
from openglm.kernels.gpu.available import missing, takes
from openglm.kernels.packing import LARGEST_INT8

PAGE_TOKENS = 32
"""Slots of a page: what is shared between sequences, and what is wasted behind the last token."""


@dataclass(slots=True)
class Segments:
    """Who is who in a packed batch; contiguous int32 tensors on the CPU.

    Args:
        starts: (S + 1,) first packed token of each sequence; the last is N.
        lengths: (S,) keys of each sequence, the new ones and those of a trained prefix included.
        visible: (S,) leading keys that every token of the sequence sees: the context of a model
            that reads both ways, a trained prefix; 0 = causal.
        pages: (S, P) page table, -1 where unused.

    Attributes:
        slots: (N,) int64, where each new token is stored: page * PAGE_TOKENS + place in it; on the
            device of the pages once one layer has been stored.
        plan: how the Triton kernel sees them, once it did.
    """

    starts: Tensor
    lengths: Tensor
    visible: Tensor
    pages: Tensor
    slots: Tensor = field(init=False)
    plan: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        counts = self.starts.diff()
        rows = torch.arange(len(counts)).repeat_interleave(counts)  # (N,)
        first = self.lengths - self.starts[1:]  # of each sequence: index minus packed index
        index = torch.arange(len(rows)) + first[rows]
        page = self.pages[rows, index // PAGE_TOKENS].long()
        self.slots = page * PAGE_TOKENS + index % PAGE_TOKENS


@dataclass(slots=True)
class Pages:
    """Keys and values of one layer.

    Args:
        keys: (num_pages, K, D, PAGE_TOKENS) in a floating dtype, or int8.
        values: (num_pages, K, PAGE_TOKENS, D) in the same.
        key_scales: (num_pages, K, PAGE_TOKENS) float32 for int8, else None.
        value_scales: likewise.

    Attributes:
        native: how the compiled kernels see them, once they did.
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    native: Any = field(default=None, init=False, repr=False)

    def copy(self) -> Pages:
        """The same in memory of its own."""
        parts = (self.keys, self.values, self.key_scales, self.value_scales)
        keys, values, *scales = (None if part is None else part.clone() for part in parts)
        assert keys is not None
        assert values is not None
        return Pages(keys, values, *scales)


def store(pages: Pages, keys: Tensor, values: Tensor, segments: Segments) -> None:
    """Writes the new keys and values, (N, K, D) each, into their slots, rounded to their dtype.

    int8: one scale max|x| / 127 per token and head.
    """
    if compiled.can_take(keys, pages):
        compiled.store(pages, keys, values, segments)
        return
    segments.slots = segments.slots.to(keys.device)
    page, place = segments.slots // PAGE_TOKENS, segments.slots % PAGE_TOKENS
    for new, stored, scales in (
        (keys, pages.keys.transpose(2, 3), pages.key_scales),
        (values, pages.values, pages.value_scales),
    ):
        if scales is None:
            stored[page, :, place] = new.to(stored.dtype)  # (N, K, D)
        else:
            scale = new.float().abs().amax(dim=-1) / LARGEST_INT8  # (N, K)
            steps = new.float() / scale.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
            stored[page, :, place] = steps.round().to(torch.int8)
            scales[page, :, place] = scale


def attend(queries: Tensor, pages: Pages, segments: Segments) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over what each query sees.

    The query with index i in its sequence sees keys j < max(visible, i + 1).

    Args:
        queries: (N, H, D); head h uses key head h // (H / K).
        pages: with the keys and values of these queries stored.
        segments: who is who.

    Returns:
        (N, H, D) in the dtype of the queries.
    """
    if compiled.can_take(queries, pages):
        return compiled.attend(queries, pages, segments)
    if queries.device.type == "cuda" and not missing(queries.device) and takes(queries.shape[-1]):
        from openglm.kernels.gpu.paged_attention import attend as attend_tiles  # it needs Triton

        return attend_tiles(queries, pages, segments)
    mixed = torch.empty_like(queries)
    starts = segments.starts.tolist()
    for row, length in enumerate(segments.lengths.tolist()):
        table = segments.pages[row, : -(-length // PAGE_TOKENS)].to(queries.device).long()
        keys = _gather(pages.keys.transpose(2, 3), pages.key_scales, table, length, queries.dtype)
        values = _gather(pages.values, pages.value_scales, table, length, queries.dtype)
        visible = int(segments.visible[row])
        piece = max(1, MAX_SCORE_ELEMENTS // (queries.shape[1] * length))
        for start in range(starts[row], starts[row + 1], piece):
            end = min(start + piece, starts[row + 1])
            first = length - (starts[row + 1] - start)  # index of the piece's first query
            bias = _bias(first, end - start, length, visible, queries.device)
            part = attention(queries[start:end][None], keys, values, bias, 0.0)  # (1, T, H, D)
            mixed[start:end] = part[0]
    return mixed


def _gather(
    stored: Tensor, scales: Tensor | None, table: Tensor, length: int, dtype: torch.dtype
) -> Tensor:
    """The first `length` keys or values in the pages of `table`, (1, S, K, D) in `dtype`."""
    rows = stored[table]  # (P, K, PAGE_TOKENS, D)
    if scales is not None:
        rows = rows.float() * scales[table][..., None]
    return rows.transpose(1, 2).flatten(0, 1)[None, :length].to(dtype)


def _bias(
    first: int, num_queries: int, num_keys: int, visible: int, device: torch.device
) -> Tensor | None:
    """(1, 1, T, S) float32 to add to the scores; None if every query sees every key."""
    if max(visible, first + 1) >= num_keys:
        return None
    columns = torch.arange(num_keys, device=device)
    last = torch.arange(first, first + num_queries, device=device).clamp(min=visible - 1)
    blocked = torch.zeros((num_queries, num_keys), dtype=torch.float32, device=device)
    blocked.masked_fill_(columns > last[:, None], torch.finfo(torch.float32).min)
    return blocked[None, None]
