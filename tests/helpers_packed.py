"""Random packed weights, and how exact a product over them must be."""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.kernels.packing import PackedWeight, Packing, pack, pack_scale

EPSILON = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
"""Largest relative error of one rounding."""


FORMS = [
    *(Packing(bits=4, group_size=g, symmetric=s) for g in (32, 64, 128) for s in (True, False)),
    *(Packing(bits=8, group_size=g, symmetric=s) for g in (32, 128) for s in (True, False)),
    *(Packing(bits=bits) for bits in (4, 8)),
]


def random_weight(
    rows: int, columns: int, packing: Packing, device: torch.device | str = "cpu"
) -> tuple[PackedWeight, Tensor]:
    """Random packed weights, and their exact values (N, K) float64."""
    generator = torch.Generator().manual_seed(rows * columns)
    q = torch.randint(0, 2**packing.bits, (rows, columns), generator=generator).byte()
    width = packing.group_size or columns
    groups = (rows, -(-columns // width))
    dtype = torch.float16 if packing.group_size else torch.float32
    scale = (torch.rand(groups, generator=generator) / 2**packing.bits + 0.01).to(dtype)
    minimum = None if packing.symmetric else -torch.rand(groups, generator=generator).half()

    def spread(numbers: Tensor) -> Tensor:
        return numbers.double().repeat_interleave(width, 1)[:, :columns]

    if minimum is None:
        exact = (q.double() - packing.zero) * spread(scale)
    else:
        exact = q.double() * spread(scale) + spread(minimum)
        minimum = pack_scale(minimum, packing).to(device)
    values, packed_scale = pack(q, packing).to(device), pack_scale(scale, packing).to(device)
    return PackedWeight(packing, rows, columns, values, packed_scale, minimum), exact


def check_product(y: Tensor, x: Tensor, exact: Tensor, bias: Tensor | None) -> None:
    """Compares with the float64 product.

    The bound: each weight and the result rounded once to the dtype, and K additions in float32,
    also of what a symmetric weight subtracts (2 |q - 8| covers q and 8 on average; factor 4).
    """
    x, dtype = x.double().cpu(), x.dtype
    expected = x @ exact.T + (0 if bias is None else bias.double().cpu())
    size = x.abs() @ exact.abs().T
    bound = EPSILON[dtype] * (2 * expected.abs() + size) + 4 * x.shape[-1] * 2.0**-24 * size + 1e-6
    assert y.dtype == dtype
    assert y.shape == expected.shape
    worst = ((y.double().cpu() - expected).abs() / bound).max()
    assert worst <= 1, f"{worst:.2f} of the bound"
