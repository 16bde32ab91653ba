"""y = x W^T + b over a packed quantized weight: the specification, and the choice of a kernel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openglm.errors import KernelUnavailable, suggest
from openglm.kernels.gpu.available import missing
from openglm.kernels.packing import PackedWeight, dequantize

BLOCKS_AT_ONCE = 64
"""Blocks of rows that the reference makes floats together, so that these stay few."""


def linear(
    x: Tensor, weight: PackedWeight, bias: Tensor | None = None, kernel: str = "auto"
) -> Tensor:
    """X W^T + b.

    Args:
        x: (..., K) float32, float16 or bfloat16.
        weight: of N rows and K columns, on the device of x.
        bias: (N,).
        kernel: "reference", "triton", or "auto" = Triton on a GPU that has it.

    Returns:
        (..., N) in the dtype of x.

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
    """In plain torch: weights are rounded to the dtype of x, some rows at a time."""
    parts = [
        nn.functional.linear(x, dequantize(weight, x.dtype, slice(start, start + BLOCKS_AT_ONCE)))
        for start in range(0, len(weight.values), BLOCKS_AT_ONCE)
    ]
    whole = torch.cat(parts, dim=-1)  # (..., N)
    return whole if bias is None else whole + bias


def by_triton(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    """By the kernels of `openglm.kernels.gpu.packed_linear`."""
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
