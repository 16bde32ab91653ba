"""The official INT8 and INT4 scheme: symmetric, one scale per output row, weights only.

    scale = max |row| / (2^(bits - 1) - 1)          q = round half to even(row / scale)

INT4 puts two numbers into a byte, the even column into the high nibble. ChatGLM-6B rounds the scale
to fp16 before it divides; the others keep the dtype of the weight. Nothing is clamped: a scale
rounded down can carry 127.5 to 128, which wraps to -128, as officially.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.kernels.packing import LARGEST_INT8
from openglm.memory import ROWS_AT_ONCE

LARGEST = {8: LARGEST_INT8, 4: 7}


def quantize_rows(weight: Tensor, bits: int, half_scale: bool = False) -> tuple[Tensor, Tensor]:
    """(out, in) floats -> (out, in) int8 and (out,) scales.

    Args:
        weight: float16, bfloat16 or float32.
        bits: 8 or 4; INT4 values are from -8 to 7, not packed.
        half_scale: round the scale to fp16 first (ChatGLM-6B).
    """
    values = torch.empty_like(weight, dtype=torch.int8)
    scales = weight.new_empty(len(weight), dtype=torch.float16 if half_scale else weight.dtype)
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE]
        scale = (rows.abs().amax(dim=-1) / LARGEST[bits]).to(scales.dtype)
        rounded = torch.round(rows / scale[:, None])
        values[start : start + ROWS_AT_ONCE] = rounded.to(torch.int32).to(torch.int8)
        scales[start : start + ROWS_AT_ONCE] = scale
    return values, scales


def pack_nibbles(values: Tensor) -> Tensor:
    """(out, in) int8 from -8 to 7 -> (out, in / 2) int8, even columns in the high nibbles."""
    high, low = values[:, 0::2], values[:, 1::2]  # (out, in / 2) each
    return (high << 4) | (low & 15)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """The inverse of `pack_nibbles`."""
    high = packed >> 4  # of int8: keeps the sign
    low = (packed << 4) >> 4
    return torch.stack([high, low], dim=-1).flatten(-2)  # (out, in / 2, 2) -> (out, in)


def dequantize_rows(values: Tensor, scale: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Stored integers and scales -> (out, in) floats of `dtype`.

    Args:
        values: (out, in) int8, or (out, in / 2) for 4 bits.
        scale: (out,).
        bits: 8 or 4.
        dtype: of the result; the product is taken in what holds both it and the scale.
    """
    whole = unpack_nibbles(values) if bits == 4 else values
    fine = torch.promote_types(scale.dtype, dtype)
    return whole.to(fine).mul_(scale.to(fine)[:, None]).to(dtype)
