"""Blocks and norms on the compiled kernels: two long calls per block, with its attention between.

Projections of the same input become one product. All activations are float32 and contiguous.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from openglm.compiled.linear import CompiledLinear, side_by_side
from openglm.kernels.cpu import module
from openglm.model.transformer import DeepNormBlock, PreNormBlock
from openglm.nn.context import LayerContext
from openglm.nn.mlp import GatedMLP
from openglm.nn.rotary import Rotation, rotate_interleaved

ACTIVATIONS = {"swiglu": 0, "gelu_tanh": 1, "gelu_erf": 2, "geglu": 2, "gelu_sigmoid": 3}
"""Names in `ModelConfig` -> the family in csrc/elementwise.h."""
NORMS = ("input_norm", "attention_output_norm", "post_attention_norm", "mlp_output_norm")
"""Names in `PreNormBlock`, in the order of csrc/block.h."""


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

    @property
    def pointers(self) -> tuple[int, int]:
        """Addresses of weight and bias; 0 for none."""
        return self.weight.data_ptr(), 0 if self.bias is None else self.bias.data_ptr()

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) float32 -> the same."""
        width = len(self.weight)
        assert x.dtype == torch.float32
        assert x.shape[-1] == width
        x = x.contiguous()
        out = torch.empty_like(x)
        where = out.data_ptr(), x.numel() // width, width
        self.native.norm(x.data_ptr(), *self.pointers, self.eps, *where)
        return out


class CompiledBlock(nn.Module):
    """`PreNormBlock` and its variants; queries come from what is attended to.

    Args:
        block: with `CompiledLinear` projections and `CompiledNorm` norms, which become this one's.
        activation: a key of `ACTIVATIONS`.
    """

    def __init__(self, block: PreNormBlock, activation: str) -> None:
        super().__init__()
        self.attention, self.mlp = attention, mlp = block.attention, block.mlp
        projections = _compiled(attention.q_proj, attention.k_proj, attention.v_proj)
        first = (mlp.gate_proj, mlp.up_proj) if isinstance(mlp, GatedMLP) else (mlp.up_proj,)
        # The native block reads what these hold.
        self.products = [
            side_by_side(projections),
            side_by_side(_compiled(attention.o_proj)),
            side_by_side(_compiled(*first)),
            side_by_side(_compiled(mlp.down_proj)),
        ]
        self.head_dim = attention.head_dim
        self.heads = [layer.packed.out_features // self.head_dim for layer in projections]
        native = module()
        assert native is not None
        self.native: Any = native.Block(
            *(product.native for product in self.products),
            sum(self.heads[:2]),
            self.head_dim,
            attention.rotate is rotate_interleaved,
            ACTIVATIONS[activation],
            isinstance(mlp, GatedMLP),
            block.residual_scale if isinstance(block, DeepNormBlock) else 0.0,
        )
        for place, name in enumerate(NORMS):
            norm = getattr(block, name)
            setattr(self, name, norm)
            if isinstance(norm, CompiledNorm):
                self.native.set_norm(place, *norm.pointers, norm.eps, len(norm.weight))

    def forward(self, x: Tensor, rotation: Rotation | None, context: LayerContext) -> Tensor:
        """(B, T, C) float32 -> the same; see `PreNormBlock.forward`."""
        x = x.contiguous()
        batch_size, num_tokens, _ = x.shape
        num_rows = batch_size * num_tokens
        mixed = torch.empty((batch_size, num_tokens, sum(self.heads), self.head_dim))
        if rotation is None:
            self.native.before(x.data_ptr(), num_rows, 0, 0, 0, 0, mixed.data_ptr())
        else:
            cos, sin = (
                table.expand(batch_size, -1, -1, -1, -1).contiguous()
                for table in (rotation.cos, rotation.sin)
            )
            angles = cos.data_ptr(), sin.data_ptr(), *cos.shape[-2:]
            self.native.before(x.data_ptr(), num_rows, *angles, mixed.data_ptr())
        queries, keys, values = torch.split(mixed, self.heads, dim=2)  # (B, T, H or K, D)
        attended = context.attend(queries, keys, values, 0.0).contiguous()
        out = torch.empty_like(x)
        self.native.behind(x.data_ptr(), attended.data_ptr(), num_rows, out.data_ptr())
        return out


def _compiled(*layers: nn.Module) -> list[CompiledLinear]:
    assert all(isinstance(layer, CompiledLinear) for layer in layers)
    return list(layers)  # type: ignore[arg-type]
