"""`RowwiseLinear`, a layer over official INT8 or INT4 weights, and putting it into a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from openglm.memory import ROWS_AT_ONCE
from openglm.model import Transformer
from openglm.quant.rowwise import dequantize_rows, pack_nibbles, quantize_rows

PARTS = ("layers", "top_layer")
"""Parts of a network that the official code quantizes; embeddings, norms and head stay as is."""


class RowwiseLinear(nn.Module):
    """x W^T + b, where W is dequantized for each call, some rows at a time.

    Args:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
        bits: 8 or 4.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool, bits: int) -> None:
        super().__init__()
        self.bits = bits
        width = in_features // 2 if bits == 4 else in_features
        stored = torch.empty(out_features, width, dtype=torch.int8)
        self.weight = nn.Parameter(stored, requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty(out_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    @classmethod
    def quantized(cls, linear: nn.Linear, bits: int, half_scale: bool) -> RowwiseLinear:
        """A layer over the quantized weight of `linear`, with its bias; see `quantize_rows`."""
        weight = linear.weight.detach()
        values, scale = quantize_rows(weight, bits, half_scale)
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, False, bits)
        stored = pack_nibbles(values) if bits == 4 else values
        layer.weight = nn.Parameter(stored, requires_grad=False)
        layer.weight_scale = nn.Parameter(scale.to(weight.dtype), requires_grad=False)
        layer.bias = linear.bias
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        parts = [
            linear(x, dequantize_rows(rows, scale, self.bits, x.dtype))
            for rows, scale in zip(
                torch.split(self.weight, ROWS_AT_ONCE),
                torch.split(self.weight_scale, ROWS_AT_ONCE),
                strict=True,
            )
        ]
        whole = torch.cat(parts, dim=-1)  # (..., out)
        return whole if self.bias is None else whole + self.bias


def rowwise(model: Transformer, bits: int) -> Transformer:
    """Puts empty `RowwiseLinear` layers where the official code has quantized ones; in place.

    Args:
        model: the network.
        bits: 8 or 4; 0 changes nothing.
    """
    for part in PARTS if bits else ():
        for parent in getattr(model, part, nn.Module()).modules():
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    bias = child.bias is not None
                    with torch.device(child.weight.device):
                        layer = RowwiseLinear(child.in_features, child.out_features, bias, bits)
                    setattr(parent, name, layer)
    return model
