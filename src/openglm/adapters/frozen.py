"""Gradients through frozen layers: to their inputs only, and no float copy of the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openglm.kernels.packing import dequantize
from openglm.quant.linear import PackedLinear, RowwiseLinear
from openglm.quant.rowwise import dequantize_rows


def frozen_linear(layer: nn.Module, x: Tensor) -> Tensor:
    """(..., in) -> (..., out) through a layer that is not trained, float or quantized."""
    if isinstance(layer, PackedLinear | RowwiseLinear):
        product: Tensor = _Quantized.apply(x, layer)  # type: ignore[no-untyped-call]
        return product
    return layer(x)  # type: ignore[no-any-return]


class _Quantized(torch.autograd.Function):
    """Dequantizes anew in the backward pass; autograd would keep every weight in floats until then.

    The forward pass multiplies by the dequantized weight too: kernels that round activations would
    compute another function than the one whose gradient is taken.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear | RowwiseLinear) -> Tensor:
        """The product x W^T + b."""
        ctx.layer = layer
        weight = plain_weight(layer, x.dtype)
        return torch.nn.functional.linear(x, weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        """To the input."""
        (grad,) = grad_outputs
        return grad @ plain_weight(ctx.layer, grad.dtype), None


def plain_weight(layer: PackedLinear | RowwiseLinear, dtype: torch.dtype) -> Tensor:
    """The (out, in) weight that a quantized layer stands for."""
    if isinstance(layer, PackedLinear):
        return dequantize(layer.packed, dtype)
    return dequantize_rows(layer.weight, layer.weight_scale, layer.bits, dtype)
