"""Official row-wise weights in the packed layout, which kernels read; and a layer over them.

The integers are those of the files, moved by 2^(bits - 1) to start at 0, and the scales stay what
they are: nothing is quantized again.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openglm.kernels.packed_linear import linear
from openglm.kernels.packing import PackedWeight, Packing, pack, pack_scale
from openglm.model import Transformer
from openglm.quant.linear import RowwiseLinear
from openglm.quant.rowwise import unpack_nibbles


def packed_rows(layer: RowwiseLinear) -> PackedWeight:
    """The weight of an official layer in the packed layout, on its device."""
    packing = Packing(bits=layer.bits)
    signed = unpack_nibbles(layer.weight) if layer.bits == 4 else layer.weight.detach()  # (N, K)
    integers = (signed.to(torch.int16) + packing.zero).to(torch.uint8)
    scale = pack_scale(layer.weight_scale.detach().float()[:, None], packing)
    num_rows, num_columns = integers.shape
    return PackedWeight(packing, num_rows, num_columns, pack(integers, packing), scale)


class PackedRowsLinear(nn.Module):
    """x W^T + b over the weight of a `RowwiseLinear`, by the fastest kernel of its device.

    Args:
        layer: whose integers are packed, on its device; the bias is shared.
    """

    def __init__(self, layer: RowwiseLinear) -> None:
        super().__init__()
        weight = packed_rows(layer)
        self.packing = weight.packing
        self.out_features, self.in_features = weight.out_features, weight.in_features
        self.weight = nn.Parameter(weight.values, requires_grad=False)
        self.weight_scale = nn.Parameter(weight.scale, requires_grad=False)
        self.bias = layer.bias

    @property
    def packed(self) -> PackedWeight:
        """The weight as kernels take it."""
        return PackedWeight(
            self.packing, self.out_features, self.in_features, self.weight, self.weight_scale
        )

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return linear(x, self.packed, self.bias)


def use_packed_rows(model: Transformer) -> Transformer:
    """Puts a `PackedRowsLinear` in the place of every `RowwiseLinear`, one by one; in place."""
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, RowwiseLinear):
                setattr(parent, name, PackedRowsLinear(child))
    return model
