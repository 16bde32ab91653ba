"""Attention of a packed batch to keys and values in pages, in Triton.

A program takes a tile: some queries of one sequence and the query heads that share a key head, so
that keys are read once and never copied. Sequences with one new token are too few programs to
read memory at full speed: their keys are cut into parts as in `decode_attention`. Which of both
happens to a token, and so the last bits of its numbers, does not depend on what else is in the
batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.kernels.gpu.available import SMALLEST_TILE, is_interpreted
from openglm.kernels.gpu.decode_attention import PARTS, join_parts
from openglm.kernels.paged_attention import PAGE_TOKENS, Pages, Segments

TILE_ROWS = 64
"""Queries times heads of a tile, of sequences with several new tokens."""
FIELDS = 5
"""Of a tile: sequence, first packed token, tokens, index of the first, leading keys all see."""


@triton.jit
def attend_tile(
    queries,
    keys,
    values,
    key_scales,
    value_scales,
    table,
    tiles,
    mixed,
    largest,
    sums,
    scale,
    table_stride,
    NUM_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    PARTS: tl.constexpr,
    INT8: tl.constexpr,
    WIDENED: tl.constexpr,
):
    """One part of the keys of one tile and key head.

    Args: queries (N, NUM_HEADS, WIDTH); keys (num_pages, KEY_HEADS, WIDTH, PAGE) and values
    (num_pages, KEY_HEADS, PAGE, WIDTH), scales (num_pages, KEY_HEADS, PAGE) where INT8; table
    (S, P) int32 page numbers; tiles (T, 5) int32, see FIELDS; QUERIES and HEADS, room for so many
    in a tile. With PARTS = 1 mixed is the result, (N, NUM_HEADS, WIDTH); otherwise a tile has one
    query, and mixed (T, NUM_HEADS, PARTS, WIDTH), largest and sums are those of `attend_part`.
    """
    GROUP: tl.constexpr = NUM_HEADS // KEY_HEADS
    tile, key_head = tl.program_id(0) // KEY_HEADS, tl.program_id(0) % KEY_HEADS
    fields = tiles + tile * 5
    row, first, count = tl.load(fields), tl.load(fields + 1), tl.load(fields + 2)
    index, visible = tl.load(fields + 3), tl.load(fields + 4)
    m, d, s = tl.arange(0, QUERIES * HEADS), tl.arange(0, WIDTH), tl.arange(0, PAGE)
    q, g = m // HEADS, m % HEADS
    inside = (q < count) & (g < GROUP)
    head = (first + q) * NUM_HEADS + key_head * GROUP + g
    query = tl.load(queries + head[:, None] * WIDTH + d, mask=inside[:, None], other=0.0)
    if WIDENED:
        query = query.to(tl.float32)
    seen = tl.maximum(visible, index + q + 1)
    num_pages = tl.cdiv(tl.maximum(visible, index + count), PAGE)
    share = tl.cdiv(num_pages, PARTS)
    begin = tl.program_id(1) * share
    top = tl.full((QUERIES * HEADS,), -float("inf"), tl.float32)
    total = tl.zeros((QUERIES * HEADS,), tl.float32)
    acc = tl.zeros((QUERIES * HEADS, WIDTH), tl.float32)
    for page in range(begin, tl.minimum(begin + share, num_pages)):
        block = tl.load(table + row * table_stride + page).to(tl.int64) * KEY_HEADS + key_head
        key = tl.load(keys + block * WIDTH * PAGE + d[:, None] * PAGE + s).to(query.dtype)
        value = tl.load(values + block * PAGE * WIDTH + s[:, None] * WIDTH + d).to(query.dtype)
        scores = tl.dot(query, key, input_precision="ieee") * scale  # (tile, PAGE)
        if INT8:
            scores = scores * tl.load(key_scales + block * PAGE + s)[None, :]
        scores = tl.where((page * PAGE + s)[None, :] < seen[:, None], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        if INT8:
            weights = weights * tl.load(value_scales + block * PAGE + s)[None, :]
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(query.dtype), value, acc, input_precision="ieee")
        top = new_top
    if PARTS == 1:
        whole = (acc / total[:, None]).to(mixed.dtype.element_ty)
        tl.store(mixed + head[:, None] * WIDTH + d, whole, mask=inside[:, None])
    else:
        part = (tile * NUM_HEADS + key_head * GROUP + g) * PARTS + tl.program_id(1)
        tl.store(mixed + part[:, None] * WIDTH + d, acc, mask=inside[:, None])
        tl.store(largest + part, top, mask=inside)
        tl.store(sums + part, total, mask=inside)


@dataclass(frozen=True, slots=True)
class Plan:
    """A batch as tiles; on the GPU.

    Args:
        table: see `Segments.pages`.
        single: (T, 5) int32, the tiles of sequences with one new token; see FIELDS.
        several: likewise, of the others.
        places: (T,) int64, where the tokens of `single` are in the batch.
    """

    table: Tensor
    single: Tensor
    several: Tensor
    places: Tensor


def plan(segments: Segments, queries_per_tile: int, device: torch.device) -> Plan:
    """Cuts the new tokens into tiles of at most so many."""
    single: list[list[int]] = []
    several: list[list[int]] = []
    starts, lengths = segments.starts.tolist(), segments.lengths.tolist()
    for row, (length, visible) in enumerate(zip(lengths, segments.visible.tolist(), strict=True)):
        start, end = starts[row], starts[row + 1]
        tiles = single if end - start == 1 else several
        for first in range(start, end, queries_per_tile):
            count = min(queries_per_tile, end - first)
            tiles.append([row, first, count, length - (end - first), visible])

    def on_device(rows: list[list[int]]) -> Tensor:
        return torch.tensor(rows, dtype=torch.int32).view(-1, FIELDS).to(device)

    places = torch.tensor([tile[1] for tile in single], dtype=torch.int64).to(device)
    return Plan(segments.pages.to(device), on_device(single), on_device(several), places)


def attend(queries: Tensor, pages: Pages, segments: Segments) -> Tensor:
    """See `openglm.kernels.paged_attention.attend`; D as `available.takes` says."""
    num_heads, width = queries.shape[1:]
    group = num_heads // pages.keys.shape[1]
    heads = triton.next_power_of_2(group)
    per_tile = max(1, TILE_ROWS // heads)
    if segments.plan is None:
        segments.plan = plan(segments, per_tile, queries.device)
    tiles: Plan = segments.plan
    queries = queries.contiguous()
    out = torch.empty_like(queries)
    if len(tiles.several):
        rows = max(heads, SMALLEST_TILE // per_tile)
        _run(queries, pages, tiles.table, tiles.several, (per_tile, rows), (out, out, out), 1)
    if len(tiles.single):
        shape = (len(tiles.single), num_heads, PARTS)
        mixed = queries.new_empty((*shape, width), dtype=torch.float32)
        largest, sums = mixed.new_empty((2, *shape))
        rows = max(heads, SMALLEST_TILE)
        parts = (mixed, largest, sums)
        _run(queries, pages, tiles.table, tiles.single, (1, rows), parts, PARTS)
        joined = queries.new_empty((len(tiles.single), num_heads, width))
        join_parts[(len(tiles.single) * num_heads,)](
            *parts, joined, WIDTH=width, PARTS=PARTS, enable_fp_fusion=True
        )
        out.index_copy_(0, tiles.places, joined)
    return out


def _run(
    queries: Tensor,
    pages: Pages,
    table: Tensor,
    tiles: Tensor,
    room: tuple[int, int],
    results: tuple[Tensor, Tensor, Tensor],
    num_parts: int,
) -> None:
    """Starts `attend_tile` for some tiles, with room for so many queries and heads in each."""
    num_heads, width = queries.shape[1:]
    key_heads = pages.keys.shape[1]
    is_int8 = pages.key_scales is not None
    attend_tile[(len(tiles) * key_heads, num_parts)](
        queries,
        pages.keys,
        pages.values,
        pages.key_scales if is_int8 else pages.keys,
        pages.value_scales if is_int8 else pages.values,
        table,
        tiles,
        *results,
        width**-0.5,
        table.stride(0),
        NUM_HEADS=num_heads,
        KEY_HEADS=key_heads,
        WIDTH=width,
        QUERIES=room[0],
        HEADS=room[1],
        PAGE=PAGE_TOKENS,
        PARTS=num_parts,
        INT8=is_int8,
        # The interpreter multiplies bf16 numbers as if their bits were integers.
        WIDENED=is_interpreted() and queries.dtype == torch.bfloat16,
        enable_fp_fusion=True,
    )
