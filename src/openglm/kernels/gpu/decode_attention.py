"""Attention of one token per row to a cache, in Triton, with the number of keys on the GPU.

All query heads that share a key head are taken together, so that keys are read once and never
copied. The keys are cut into parts, one program each (flash-decoding, Dao et al. 2023), since rows
and heads alone are too few to read memory at full speed; a second kernel puts the parts together.
Keys behind the last one are not read, though the launch is the same for any number: a CUDA graph
can replay it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.kernels.gpu.available import SMALLEST_TILE, is_interpreted

PARTS = 32
"""Always as many: the order of a sum must not depend on the batch."""
BLOCK_S = 64
"""Keys of one step."""


@triton.jit
def attend_part(
    queries,
    keys,
    values,
    place,
    mixed,
    largest,
    sums,
    scale,
    row_stride,
    key_stride,
    NUM_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PARTS: tl.constexpr,
    WIDENED: tl.constexpr,
):
    """One part of the keys of one row and key head, for the query heads that share it.

    Args: queries (B, NUM_HEADS, WIDTH); keys and values (B, S, KEY_HEADS, WIDTH) with strides of
    rows and keys; place (1,), the last key; mixed float32 (B, NUM_HEADS, PARTS, WIDTH), not yet
    divided by sums; largest score and sums of exp(score - largest) float32 (B, NUM_HEADS, PARTS).
    """
    GROUP: tl.constexpr = NUM_HEADS // KEY_HEADS
    row, key_head = tl.program_id(0) // KEY_HEADS, tl.program_id(0) % KEY_HEADS
    g, d = tl.arange(0, TILE), tl.arange(0, WIDTH)
    head = row * NUM_HEADS + key_head * GROUP + g
    inside = g < GROUP
    query = tl.load(queries + head[:, None] * WIDTH + d, mask=inside[:, None], other=0.0)
    if WIDENED:
        query = query.to(tl.float32)
    offset = row.to(tl.int64) * row_stride + key_head * WIDTH
    num_keys = (tl.load(place) + 1).to(tl.int32)
    share = tl.cdiv(tl.cdiv(num_keys, PARTS), BLOCK_S) * BLOCK_S
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, num_keys)
    top = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    acc = tl.zeros((TILE, WIDTH), tl.float32)
    for start in range(first, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        seen = (s < last)[:, None]
        at = offset + s.to(tl.int64)[:, None] * key_stride + d
        key = tl.load(keys + at, mask=seen, other=0.0)
        value = tl.load(values + at, mask=seen, other=0.0)
        if WIDENED:
            key, value = key.to(tl.float32), value.to(tl.float32)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * scale  # (TILE, S)
        scores = tl.where((s < last)[None, :], scores, -float("inf"))
        new_top = tl.maximum(top, tl.max(scores, axis=1))
        weights = tl.exp(scores - new_top[:, None])
        shrink = tl.exp(top - new_top)
        total = total * shrink + tl.sum(weights, axis=1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(value.dtype), value, acc, input_precision="ieee")
        top = new_top
    part = head * PARTS + tl.program_id(1)
    tl.store(mixed + part[:, None] * WIDTH + d, acc, mask=inside[:, None])
    tl.store(largest + part, top, mask=inside)
    tl.store(sums + part, total, mask=inside)


@triton.jit
def join_parts(mixed, largest, sums, out, WIDTH: tl.constexpr, PARTS: tl.constexpr):
    """One query head: brings its parts to one maximum, adds them up and divides by the sum."""
    head, d, p = tl.program_id(0), tl.arange(0, WIDTH), tl.arange(0, PARTS)
    tops = tl.load(largest + head * PARTS + p)  # -inf of parts without keys
    factors = tl.exp(tops - tl.max(tops, axis=0))
    total = tl.sum(tl.load(sums + head * PARTS + p) * factors, axis=0)
    parts = tl.load(mixed + (head * PARTS + p)[:, None] * WIDTH + d)
    whole = tl.sum(parts * factors[:, None], axis=0) / total
    tl.store(out + head * WIDTH + d, whole.to(out.dtype.element_ty))


def decode_attention(queries: Tensor, keys: Tensor, values: Tensor, place: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over the keys up to `place`.

    Args:
        queries: (B, 1, H, D), one token per row; D as `available.takes` says.
        keys: (B, S, K, D), heads and their elements contiguous; H a multiple of K.
        values: like `keys`, with the same strides.
        place: (1,) int64 below S, on the same device: the last key that is seen.

    Returns:
        (B, 1, H, D) in the dtype of the queries.
    """
    batch_size, _, num_heads, width = queries.shape
    key_heads = keys.shape[2]
    queries = queries.contiguous()
    mixed = queries.new_empty((batch_size, num_heads, PARTS, width), dtype=torch.float32)
    largest, sums = mixed.new_empty((2, batch_size, num_heads, PARTS))
    attend_part[(batch_size * key_heads, PARTS)](
        queries,
        keys,
        values,
        place,
        mixed,
        largest,
        sums,
        width**-0.5,
        keys.stride(0),
        keys.stride(1),
        NUM_HEADS=num_heads,
        KEY_HEADS=key_heads,
        WIDTH=width,
        TILE=max(SMALLEST_TILE, triton.next_power_of_2(num_heads // key_heads)),
        BLOCK_S=BLOCK_S,
        PARTS=PARTS,
        # The interpreter multiplies bf16 numbers as if their bits were integers.
        WIDENED=is_interpreted() and keys.dtype == torch.bfloat16,
        enable_fp_fusion=True,
    )
    out = torch.empty_like(queries)
    grid = (batch_size * num_heads,)
    join_parts[grid](mixed, largest, sums, out, WIDTH=width, PARTS=PARTS, enable_fp_fusion=True)
    return out
