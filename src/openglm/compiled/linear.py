"""Linear layers and word embeddings over weights in the packed layout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openglm.kernels.cpu.product import Product
from openglm.kernels.packed_linear import embedding
from openglm.kernels.packing import (
    PackedFloats,
    PackedWeight,
    pack_floats,
    rows_of,
)
from openglm.quant.linear import Packed, PackedLinear, RowwiseLinear
from openglm.quant.packed_rows import packed_rows

Weight = PackedWeight | PackedFloats


class Layer(nn.Module):
    """A weight as the kernels take it, with its bias.

    Args:
        weight: the weight.
        bias: (N,) of any floating-point type, or None.
    """

    def __init__(self, weight: Weight, bias: Tensor | None) -> None:
        super().__init__()
        self.packed = weight
        self.weight = _frozen(weight.values)
        if isinstance(weight, PackedWeight):
            self.weight_scale = _frozen(weight.scale)
            self.weight_minimum = None if weight.minimum is None else _frozen(weight.minimum)
        self.bias = None if bias is None else _frozen(bias.detach().float())


class CompiledLinear(Layer):
    """x W^T + b.

    Args:
        weight: the weight.
        bias: (N,) of any floating-point type, or None.
        exact: activations are as they are, not rounded to what suits the weights.
    """

    def __init__(self, weight: Weight, bias: Tensor | None, exact: bool = True) -> None:
        super().__init__(weight, bias)
        self.exact = exact
        self.product = side_by_side([self])

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N) float32."""
        return self.product(x)


class CompiledEmbedding(CompiledLinear):
    """A word embedding, and its logits where the head is tied to it."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C) float32."""
        if isinstance(self.packed, PackedWeight):
            return embedding(input_ids, self.packed, torch.float32)
        return rows_of(self.packed, input_ids).float()

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) float32 -> (..., V) float32: their products with every row."""
        return self.product(hidden)


def packed_weight(layer: nn.Module) -> Weight:
    """The weight of a linear layer or embedding, in the packed layout.

    Args:
        layer: plain, or quantized.
    """
    if isinstance(layer, Packed):
        return layer.packed
    if isinstance(layer, RowwiseLinear):
        return packed_rows(layer)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    num_rows, num_columns = weight.shape
    return PackedFloats(num_rows, num_columns, pack_floats(weight.detach()))


def side_by_side(layers: Sequence[CompiledLinear]) -> Product:
    """One product of layers that share their input."""
    return Product([(layer.packed, layer.bias) for layer in layers], layers[0].exact)


def is_linear(module: nn.Module) -> bool:
    """Whether the module is a linear layer that has a compiled form."""
    return isinstance(module, nn.Linear | RowwiseLinear | PackedLinear)


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
