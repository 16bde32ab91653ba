"""`Product`: x -> x W^T + b by the compiled kernels, for weights that share their input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from openglm.kernels.cpu import module
from openglm.kernels.packing import PackedFloats, PackedWeight

KINDS = {4: 0, 8: 1, torch.bfloat16: 2, torch.float32: 3, torch.float16: 4}
"""`Kind` of csrc/core.h."""


class Product:
    """Weights that are applied to the same activations; their results stand side by side.

    Activations are float32 from outside. Products with bfloat16 round them to bfloat16, those with
    integers to int8, per token and group of columns, unless they shall be exact. Sums are float32,
    in an order that does not depend on the number of tokens.

    Args:
        parts: weights and their biases, of one kind, width and grouping.
        exact: weights meet activations as they are.
    """

    def __init__(
        self, parts: Sequence[tuple[PackedWeight | PackedFloats, Tensor | None]], exact: bool
    ) -> None:
        native = module()
        assert native is not None
        first = parts[0][0]
        inputs = first.in_features
        # Pointers are kept by the native object, tensors here, so that they stay where they are.
        self.kept: list[Tensor] = []
        if isinstance(first, PackedFloats):
            columns, group = first.columns, first.columns
            kind = KINDS[first.values.dtype]
        else:
            columns = first.packing.padded(first.out_features, inputs)[1]
            group, kind = first.packing.columns_at_once, KINDS[first.packing.bits]
        self.native = native.Linear(kind, exact, inputs, columns, group)
        for weight, bias in parts:
            assert weight.in_features == inputs
            self._add(weight, bias)
        self.in_features, self.out_features = inputs, self.native.outputs

    def _add(self, weight: PackedWeight | PackedFloats, bias: Tensor | None) -> None:
        scale = minimum = row_scale = None
        if isinstance(weight, PackedWeight):
            grouped = weight.packing.group_size > 0
            scale, minimum = (weight.scale if grouped else None), weight.minimum
            row_scale = None if grouped else weight.scale
        self.native.add(
            weight.out_features,
            self._pointer(weight.values, weight.values.dtype),
            self._pointer(scale, torch.float16),
            self._pointer(minimum, torch.float16),
            self._pointer(row_scale, torch.float32),
            self._pointer(bias, torch.float32),
        )

    def _pointer(self, tensor: Tensor | None, dtype: torch.dtype) -> int:
        if tensor is None:
            return 0
        assert tensor.dtype == dtype
        assert tensor.is_contiguous()
        self.kept.append(tensor)
        return tensor.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        """(..., K) float32 -> (..., sum of N) float32."""
        assert x.dtype == torch.float32
        assert x.shape[-1] == self.in_features
        x = x.contiguous()
        out = torch.empty((*x.shape[:-1], self.out_features), dtype=torch.float32)
        self.native.run(x.data_ptr(), x.numel() // self.in_features, out.data_ptr())
        return out
