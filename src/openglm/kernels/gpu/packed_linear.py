"""Triton kernels for packed INT4 and INT8 weights: y = x W^T + b with W dequantized in registers.

A word of 32 bits holds 8 or 4 columns of one row (see `openglm.kernels.packing`), and words of 16
rows lie side by side; so both kernels load whole words, coalesced, and shift columns out of them.

    few_rows     up to 8 rows of x: multiplies and adds in float32; the scale is applied once per
                 word, to the sum over its columns
    many_rows    tensor cores: a tile of W is dequantized to the dtype of x, products in float32

K is split between programs where N alone gives too few of them. The parts go to a buffer and are
added in a fixed order, so that a result never changes from run to run, as it does with atomic adds.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from openglm.kernels.gpu.available import is_interpreted
from openglm.kernels.packing import PackedWeight
from openglm.memory import BLOCK_ROWS

PROGRAMS = 512
"""Programs wanted at once: 4 on each of the 108 to 144 multiprocessors of a large GPU. A constant
and not the device's count: the order of a sum must not depend on where it is taken."""
FEW_ROWS = 8
"""Rows of x up to which `few_rows` can be asked for; beyond, its sums do not fit registers."""
FEW_ROWS_PREFERRED = 4
"""Rows of x up to which it is chosen: a product costs one instruction per row, beside about four
that unpack a column, so that beyond it tensor cores are ahead. By count, not yet measured."""


@triton.jit
def word_range(num_words, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr):
    """First and last + 1 word of each row that this program (second axis of the grid) adds up."""
    share = tl.cdiv(tl.cdiv(num_words, SPLITS), BLOCK_S) * BLOCK_S
    first = tl.program_id(1) * share
    return first, tl.minimum(first + share, num_words)


@triton.jit
def finish(acc, bias, out, rows, columns, M, N, SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Writes a tile; with one split the bias is added here, otherwise behind the sum of parts."""
    inside = (rows < M)[:, None] & (columns < N)[None, :]
    if HAS_BIAS and SPLITS == 1:
        acc += tl.load(bias + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    rows = rows.to(tl.int64) + tl.program_id(1).to(tl.int64) * M  # parts are (SPLITS, M, N)
    place = out + rows[:, None] * N + columns[None, :]
    tl.store(place, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def few_rows(
    x,
    words,
    scale,
    minimum,
    bias,
    out,
    M,
    N,
    K,
    x_stride,
    num_words,
    group_words,
    BITS: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """16 output columns (one block of rows of W) for all M rows of x, over one part of K.

    Args: x (M, K); words int32 (N/16, num_words, 16); scale and minimum
    (N/16, num_words / group_words, 16); bias (N,); out (M, N), or float32 (SPLITS, M, N).
    """
    PER_WORD: tl.constexpr = 32 // BITS
    block = tl.program_id(0)
    m, r = tl.arange(0, BLOCK_M), tl.arange(0, 16)
    num_groups = num_words // group_words
    acc = tl.zeros((BLOCK_M, BLOCK_S, 16), tl.float32)
    first, last = word_range(num_words, SPLITS, BLOCK_S)
    for start in range(first, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        inside = (s < last)[:, None]
        word = tl.load(words + (block * num_words + s)[:, None] * 16 + r, mask=inside, other=0)
        group = (block * num_groups + s // group_words)[:, None] * 16 + r
        factor = tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)  # (S, 16)
        products = tl.zeros((BLOCK_M, BLOCK_S, 16), tl.float32)
        sums = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)  # of x, for what is added to scale * q
        for c in tl.static_range(PER_WORD):
            q = ((word >> (8 * (c % 4) + 4 * (c // 4))) & ((1 << BITS) - 1)).to(tl.float32)
            k = s * PER_WORD + c
            seen = (m < M)[:, None] & ((s < last) & (k < K))[None, :]
            part = tl.load(x + m[:, None] * x_stride + k[None, :], mask=seen, other=0.0)
            part = part.to(tl.float32)  # (M, S)
            products += q[None, :, :] * part[:, :, None]
            sums += part
        if HAS_MINIMUM:
            least = tl.load(minimum + group, mask=inside, other=0.0).to(tl.float32)
            acc += factor[None, :, :] * products + least[None, :, :] * sums[:, :, None]
        else:
            acc += factor[None, :, :] * (products - (1 << (BITS - 1)) * sums[:, :, None])
    total = tl.sum(acc, axis=1)  # (M, 16)
    finish(total, bias, out, m, block * 16 + r, M, N, SPLITS, HAS_BIAS)


@triton.jit
def many_rows(
    x,
    words,
    scale,
    minimum,
    bias,
    out,
    M,
    N,
    K,
    x_stride,
    num_words,
    group_words,
    BITS: tl.constexpr,
    HAS_MINIMUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    WIDENED: tl.constexpr,
):
    """A tile of BLOCK_M by BLOCK_N of the output over one part of K; arguments as `few_rows`."""
    PER_WORD: tl.constexpr = 32 // BITS
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.arange(0, PER_WORD)
    shift = (8 * (c % 4) + 4 * (c // 4))[None, :, None]
    num_groups = num_words // group_words
    stored = n < tl.cdiv(N, 16) * 16
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    first, last = word_range(num_words, SPLITS, BLOCK_S)
    for start in range(first, last, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        inside = (s < last)[:, None] & stored[None, :]
        row = (n // 16 * num_words)[None, :] + s[:, None]
        word = tl.load(words + row * 16 + (n % 16)[None, :], mask=inside, other=0)  # (S, N)
        group = (n // 16 * num_groups)[None, :] + (s // group_words)[:, None]
        group = group * 16 + (n % 16)[None, :]
        factor = tl.load(scale + group, mask=inside, other=0.0).to(tl.float32)[:, None, :]
        q = ((word[:, None, :] >> shift) & ((1 << BITS) - 1)).to(tl.float32)  # (S, PER_WORD, N)
        if HAS_MINIMUM:
            least = tl.load(minimum + group, mask=inside, other=0.0).to(tl.float32)
            weight = q * factor + least[:, None, :]
        else:
            weight = (q - (1 << (BITS - 1))) * factor
        weight = tl.reshape(weight, (BLOCK_S * PER_WORD, BLOCK_N)).to(x.dtype.element_ty)
        k = start * PER_WORD + tl.arange(0, BLOCK_S * PER_WORD)
        seen = (m < M)[:, None] & (k < tl.minimum(last * PER_WORD, K))[None, :]
        part = tl.load(x + m.to(tl.int64)[:, None] * x_stride + k[None, :], mask=seen, other=0.0)
        if WIDENED:
            part, weight = part.to(tl.float32), weight.to(tl.float32)
        # In float32 tensor cores would round to 10 bits; "ieee" forbids it.
        acc = tl.dot(part, weight, acc, input_precision="ieee")
    finish(acc, bias, out, m, n, M, N, SPLITS, HAS_BIAS)


def packed_linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None, num_few_rows: int = FEW_ROWS_PREFERRED
) -> Tensor:
    """Y = x W^T + b by Triton.

    Args:
        x: (M, K) float32, float16 or bfloat16 on a GPU, columns contiguous; M may be 0.
        weight: of N rows and K columns, on the same device.
        bias: (N,), or None.
        num_few_rows: largest M for `few_rows`, at most `FEW_ROWS`; the benchmark compares.

    Returns:
        (M, N) in the dtype of x.
    """
    num_rows, size = x.shape[0], weight.out_features
    if num_rows == 0:
        return x.new_empty(0, size)
    bits = weight.packing.bits
    words = weight.values.view(torch.int32)  # (N/16, words, 16)
    few = num_rows <= num_few_rows
    tile = _few_tile(num_rows) if few else _many_tile(x, bits)
    across = triton.cdiv(size, BLOCK_ROWS if few else tile["BLOCK_N"])
    down = triton.cdiv(num_rows, tile["BLOCK_M"])
    splits = _splits(across * down, words.shape[1], tile["BLOCK_S"])
    dtype = x.dtype if splits == 1 else torch.float32
    parts = x.new_empty((splits, num_rows, size), dtype=dtype)
    (few_rows if few else many_rows)[(across, splits, down)](
        x,
        words,
        weight.scale,
        weight.scale if weight.minimum is None else weight.minimum,  # not read if there is none
        weight.scale if bias is None else bias,
        parts,
        num_rows,
        size,
        weight.in_features,
        x.stride(0),
        words.shape[1],
        words.shape[1] // weight.scale.shape[1],
        BITS=bits,
        HAS_MINIMUM=weight.minimum is not None,
        HAS_BIAS=bias is not None,
        SPLITS=splits,
        enable_fp_fusion=True,  # a product and a sum in one instruction; Triton's default changes
        **tile,
    )
    if splits == 1:
        return parts[0]
    whole = parts.sum(dim=0)
    return (whole if bias is None else whole + bias).to(x.dtype)


def _few_tile(num_rows: int) -> dict[str, int]:
    """Tile of `few_rows`: 4 KiB of words at a time, 32 bytes per thread."""
    return {"BLOCK_M": triton.next_power_of_2(num_rows), "BLOCK_S": 64, "num_warps": 4}


def _many_tile(x: Tensor, bits: int) -> dict[str, int]:
    """Tile of `many_rows`: 16 rows of x at least, as tensor cores want, up to 128."""
    # The interpreter multiplies bf16 numbers as if their bits were integers.
    widened = is_interpreted() and x.dtype == torch.bfloat16
    if len(x) <= 32:
        sizes = {"BLOCK_M": 16 if len(x) <= 16 else 32, "BLOCK_N": 64, "num_warps": 4}
        columns = 128
    else:
        sizes = {"BLOCK_M": 128, "BLOCK_N": 128, "num_warps": 8}
        columns = 64
    return sizes | {"BLOCK_S": columns * bits // 32, "num_stages": 3, "WIDENED": widened}


def _splits(num_programs: int, num_words: int, block_words: int) -> int:
    """Into how many parts K is cut: a power of two, each of at least four steps of the loop."""
    splits = 1
    while num_programs * splits < PROGRAMS and num_words >= 8 * block_words * splits:
        splits *= 2
    return splits
