"""Attention, MLP and norms of a block on the compiled kernels: fewer, longer calls.

Projections of the same input become one product; its result is rotated, or activated, in place. All
activations are float32 and contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openglm.compiled.linear import CompiledLinear, side_by_side
from openglm.kernels.cpu import module
from openglm.nn.attention import Attention
from openglm.nn.context import LayerContext
from openglm.nn.mlp import MLP, GatedMLP
from openglm.nn.rotary import Rotation, rotate_interleaved

ACTIVATIONS = {"swiglu": 0, "gelu_tanh": 1, "gelu_erf": 2, "geglu": 2, "gelu_sigmoid": 3}
"""Names in `ModelConfig` -> the family in csrc/elementwise.h."""


class CompiledAttention(nn.Module):
    """`Attention` whose queries, keys and values come from the same input.

    Args:
        attention: with `CompiledLinear` projections.
    """

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.head_dim = attention.head_dim
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            _compiled(getattr(attention, name)) for name in ("q_proj", "k_proj", "v_proj", "o_proj")
        )
        projections = [self.q_proj, self.k_proj, self.v_proj]
        self.product = side_by_side(projections)
        self.heads = [layer.packed.out_features // self.head_dim for layer in projections]
        self.is_interleaved = attention.rotate is rotate_interleaved
        self.native: Any = module()

    def forward(
        self, x: Tensor, rotation: Rotation | None, context: LayerContext, query_source: None = None
    ) -> Tensor:
        """(B, T, C) -> (B, T, C); see `Attention.forward`."""
        mixed = self.product(x).view(*x.shape[:-1], -1, self.head_dim)  # (B, T, H + 2 K, D)
        if rotation is not None:
            self._rotate(mixed, rotation)
        queries, keys, values = torch.split(mixed, self.heads, dim=2)
        return self.o_proj(context.attend(queries, keys, values, 0.0).flatten(2))  # type: ignore[no-any-return]

    def _rotate(self, x: Tensor, rotation: Rotation) -> None:
        """Turns queries and keys, which stand side by side, in place."""
        num_rows, row = x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]
        tables = (rotation.cos, rotation.sin)
        cos, sin = (table.expand(*x.shape[:2], -1, -1, -1).contiguous() for table in tables)
        planes, pairs = cos.shape[-2:]
        self.native.rotate(
            x.data_ptr(), row, num_rows, sum(self.heads[:2]), self.head_dim,
            cos.data_ptr(), sin.data_ptr(), planes, pairs, self.is_interleaved,
        )  # fmt: skip


class CompiledMLP(nn.Module):
    """`MLP` and `GatedMLP`.

    Args:
        mlp: with `CompiledLinear` projections.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, mlp: MLP, activation: str) -> None:
        super().__init__()
        self.up_proj, self.down_proj = _compiled(mlp.up_proj), _compiled(mlp.down_proj)
        self.is_gated = isinstance(mlp, GatedMLP)
        first = [self.up_proj]
        if isinstance(mlp, GatedMLP):
            self.gate_proj = _compiled(mlp.gate_proj)
            first = [self.gate_proj, self.up_proj]
        self.product = side_by_side(first)
        self.width = self.up_proj.packed.out_features
        self.family = ACTIVATIONS[activation]
        self.native: Any = module()

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        inner = self.product(x)  # (B, T, F), or (B, T, 2 F): gate and up
        out = torch.empty((*inner.shape[:-1], self.width), dtype=torch.float32)
        num_rows = out.numel() // self.width
        self.native.activate(
            self.family, self.is_gated, inner.data_ptr(), out.data_ptr(), num_rows, self.width
        )
        return self.down_proj(out)  # type: ignore[no-any-return]


class CompiledNorm(nn.Module):
    """`nn.RMSNorm` and `nn.LayerNorm` over the last dimension."""

    def __init__(self, norm: nn.LayerNorm | nn.RMSNorm) -> None:
        super().__init__()
        self.weight = nn.Parameter(norm.weight.detach().float(), requires_grad=False)
        self.eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        self.bias: nn.Parameter | None = None
        if isinstance(norm, nn.LayerNorm):
            self.bias = nn.Parameter(norm.bias.detach().float(), requires_grad=False)
        self.native: Any = module()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) float32 -> the same."""
        width = len(self.weight)
        assert x.dtype == torch.float32
        assert x.shape[-1] == width
        x = x.contiguous()
        out = torch.empty_like(x)
        weight = self.weight.data_ptr()
        where = (self.eps, out.data_ptr(), x.numel() // width, width)
        if self.bias is None:
            self.native.rms_norm(x.data_ptr(), weight, *where)
        else:
            self.native.layer_norm(x.data_ptr(), weight, self.bias.data_ptr(), *where)
        return out


def _compiled(layer: nn.Module) -> CompiledLinear:
    assert isinstance(layer, CompiledLinear)
    return layer
