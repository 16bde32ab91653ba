"""Products with packed weights: dispatch, the reference in floats, and the one in integers.

`reference` multiplies activations as they are with weights made floats again. Integer kernels
quantize the activations of every token too, and compute what `reference_integer` says, up to the
order in which float32 numbers are added.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear as float_linear
from torch.nn.functional import pad

from openglm.errors import KernelUnavailable, suggest
from openglm.kernels.gpu.available import missing
from openglm.kernels.packing import (
    LARGEST_INT8,
    PackedWeight,
    dequantize,
    unpack,
    unpack_scale,
)
from openglm.memory import BLOCK_ROWS, ROWS_AT_ONCE


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, kernel: str = "auto"
) -> Tensor:
    """`x` W^T + b.

    Args:
        x: (..., K) floats.
        weight: (N, K), packed, on the device of `x`.
        bias: (N,) in the dtype of `x`, or None.
        kernel: "reference", "triton", or "auto" = Triton on a GPU that has it.

    Returns:
        (..., N) in the dtype of `x`.

    Raises:
        KernelUnavailable: the kernel is unknown, or cannot run here.
    """
    if kernel not in ("auto", *KERNELS):
        raise KernelUnavailable(f"unknown kernel {kernel!r}", suggest(kernel, ["auto", *KERNELS]))
    if kernel == "auto":
        on_gpu = x.device.type == "cuda" and not missing(x.device)
        kernel = "triton" if on_gpu else "reference"
    return KERNELS[kernel](x, weight, bias)


def reference(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """`linear`, with floats made of some rows of the weight at a time."""
    step = ROWS_AT_ONCE // BLOCK_ROWS
    parts = [
        float_linear(x, dequantize(weight, x.dtype, slice(start, start + step)))
        for start in range(0, len(weight.values), step)
    ]
    whole = torch.cat(parts, dim=-1)  # (..., N)
    return whole if bias is None else whole + bias


def by_triton(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """`linear` by the kernels of `openglm.kernels.gpu.packed_linear`."""
    if why := missing(x.device):
        raise KernelUnavailable(
            f"the Triton kernel was asked for, but {why}",
            hint='kernel="auto" takes what is there; Triton comes with CUDA builds of torch, '
            "or with pip install openglm[triton]",
        )
    from openglm.kernels.gpu.packed_linear import packed_linear

    rows = x.reshape(-1, x.shape[-1])
    if rows.stride(1) != 1:
        rows = rows.contiguous()
    return packed_linear(rows, weight, bias).view(*x.shape[:-1], weight.out_features)


KERNELS = {"reference": reference, "triton": by_triton}


def reference_integer(x: Tensor, weight: PackedWeight) -> Tensor:
    """What integer kernels compute, without the bias.

    Per token and group g of `Packing.columns_at_once` columns, in float32:

        s = max |x| / 127       q = round half to even(x * (127 / max |x|))       0 where x is 0
        y = sum over g of s_g (scale_g sum((w - zero) q) [+ minimum_g sum(q)])

    where w are the stored integers and zero is 0 for asymmetric weights. The sums inside are exact.

    Args:
        x: (..., K) floats.
        weight: (N, K), packed.

    Returns:
        (..., N) float32.
    """
    packing = weight.packing
    quantized, step = quantize_activations(x, packing.columns_at_once)  # (..., g, G), (..., g)
    zero = packing.zero if packing.symmetric else 0
    integers = unpack(weight.values, packing).double() - zero  # (rows, padded K)
    grouped = integers.view(len(integers), -1, packing.columns_at_once)  # (rows, g, G)
    # Doubles hold these sums exactly, and have a fast product; integers have none on a CPU.
    sums = torch.einsum("...gk,ngk->...ng", quantized.double(), grouped).float()
    scaled = sums * unpack_scale(weight.scale).float()  # row-wise: one scale for every group
    if weight.minimum is not None:
        totals = quantized.float().sum(dim=-1)  # (..., g)
        scaled = scaled + totals[..., None, :] * unpack_scale(weight.minimum).float()
    return (scaled * step[..., None, :]).sum(dim=-1)[..., : weight.out_features]


def quantize_activations(x: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Quantizes each token's activations by groups of columns.

    Args:
        x: (..., K) floats; filled up with zeros to whole groups.
        group: columns that share a step.

    Returns:
        (..., groups, group) int8, and the float32 steps (..., groups) that they are multiples of.
    """
    filled = pad(x.float(), (0, -x.shape[-1] % group))
    filled = filled.view(*x.shape[:-1], -1, group)
    largest = filled.abs().amax(dim=-1)  # (..., groups)
    numerator = torch.full_like(largest, LARGEST_INT8)  # a number / x would be 1 / x * number
    factor = torch.where(largest > 0, numerator / largest, 0.0)
    quantized = torch.round(filled * factor[..., None])
    return quantized.to(torch.int8), largest / LARGEST_INT8


def embedding(ids: Tensor, weight: PackedWeight, dtype: torch.dtype) -> Tensor:
    """Rows of a packed (N, K) table, as floats.

    Args:
        ids: (...) int64, below N.
        weight: the table.
        dtype: of the result.

    Returns:
        (..., K).
    """
    flat = ids.flatten()
    block, lane = flat // BLOCK_ROWS, flat % BLOCK_ROWS
    lanes = weight.values.view(*weight.values.shape[:2], BLOCK_ROWS, 4)
    bytes_ = lanes[block, :, lane]  # (n, steps, 4)
    if weight.packing.bits == 4:
        bytes_ = torch.stack([bytes_ & 15, bytes_ >> 4], dim=2)  # (n, steps, nibbles, 4)
    integers = bytes_.flatten(1).float()  # (n, padded K)
    grouped = integers.view(len(flat), weight.scale.shape[1], -1)  # (n, groups, G)
    scale = weight.scale[block, :, lane].float()[..., None]  # (n, groups, 1)
    if weight.minimum is None:
        floats = (grouped - weight.packing.zero) * scale
    else:
        floats = grouped * scale + weight.minimum[block, :, lane].float()[..., None]
    rows = floats.flatten(1)[:, : weight.in_features].to(dtype)
    return rows.reshape(*ids.shape, weight.in_features)
