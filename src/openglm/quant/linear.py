"""Layers over quantized weights: official INT8 and INT4 rows, and packed groups."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from openglm.kernels import packed_linear
from openglm.kernels.packing import PackedWeight, Packing
from openglm.memory import ROWS_AT_ONCE
from openglm.quant.rowwise import dequantize_rows, pack_nibbles, quantize_rows
from openglm.scheme import Scheme


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


class Packed(nn.Module):
    """A packed (N, K) weight as parameters: `weight`, `weight_scale`, perhaps `weight_minimum`.

    Args:
        scheme: with groups.
        out_features: N.
        in_features: K.
    """

    def __init__(self, scheme: Scheme, out_features: int, in_features: int) -> None:
        super().__init__()
        self.packing = packing_of(scheme)
        self.out_features, self.in_features = out_features, in_features
        for name, shape in self.packing.shapes(out_features, in_features).items():
            dtype = torch.uint8 if name == "weight" else torch.float16
            empty = torch.empty(shape, dtype=dtype)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))

    @property
    def packed(self) -> PackedWeight:
        """The weight as kernels take it."""
        tensors = (self._parameters.get(f"weight{leaf}") for leaf in ("", "_scale", "_minimum"))
        return PackedWeight(self.packing, self.out_features, self.in_features, *tensors)  # type: ignore[arg-type]


class PackedLinear(Packed):
    """x W^T + b over a packed weight.

    Args:
        scheme: with groups.
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: whether there is one.
    """

    def __init__(self, scheme: Scheme, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(scheme, out_features, in_features)
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return packed_linear.linear(x, self.packed, self.bias)


class PackedEmbedding(Packed):
    """A word embedding over a packed weight; see `openglm.nn.embedding.Embedding`.

    Args:
        scheme: with groups.
        num_embeddings: rows of the weight.
        embedding_dim: columns of the weight.
        dtype: of the vectors.
    """

    def __init__(
        self, scheme: Scheme, num_embeddings: int, embedding_dim: int, dtype: torch.dtype
    ) -> None:
        super().__init__(scheme, num_embeddings, embedding_dim)
        self.dtype = dtype

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        return packed_linear.embedding(input_ids, self.packed, self.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) hidden states -> (..., V): their products with every row."""
        return packed_linear.linear(hidden, self.packed, None)


def packing_of(scheme: Scheme) -> Packing:
    """The layout of a scheme's weights."""
    return Packing(bits=scheme.bits, group_size=scheme.group_size, symmetric=scheme.symmetric)
