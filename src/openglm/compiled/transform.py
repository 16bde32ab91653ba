"""`compiled`: puts a network on the compiled CPU kernels, in place."""

from __future__ import annotations

import torch
from torch import nn

from openglm.compiled.blocks import CompiledBlock, CompiledNorm
from openglm.compiled.linear import CompiledEmbedding, CompiledLinear, is_linear, packed_weight
from openglm.kernels.cpu import module
from openglm.model import Transformer
from openglm.model.transformer import PreNormBlock
from openglm.nn.embedding import Embedding
from openglm.process import return_freed_memory
from openglm.quant.linear import PackedEmbedding, PackedLinear, RowwiseLinear


def can_compile(model: Transformer) -> bool:
    """Whether there are kernels for this network: on a CPU."""
    return model.device.type == "cpu" and module() is not None


@torch.no_grad()
def compiled(model: Transformer, activations: str = "auto") -> Transformer:
    """Replaces layers by those over compiled kernels, one by one, so that none is held twice.

    The network is for inference from then on; it computes in float32, with weights as they were.

    Args:
        model: for which `can_compile` holds.
        activations: how they meet weights. "float32": as they are; "int8": rounded per token and
            group of columns for integer weights, which is faster; "bfloat16": rounded for bfloat16
            weights; "auto": as they are with floats and the official scheme, whose released code
            computes so, else int8.
    """
    for name in ("word_embeddings", "layers", "final_norm", "top_layer", "lm_head"):
        if isinstance(part := getattr(model, name, None), nn.Module):
            setattr(model, name, _replaced(part, activations))
            return_freed_memory()
    for table in (model.positions, getattr(model, "top_queries", nn.Module())):
        table.float()
    for index, block in enumerate(model.layers):
        assert isinstance(block, PreNormBlock)
        model.layers[index] = CompiledBlock(block, model.config.activation)
    return model


def _replaced(layer: nn.Module, activations: str) -> nn.Module:
    """The compiled form of a layer; the layer itself, with compiled parts, if it has none."""
    if is_linear(layer):
        bias = layer.bias
        assert bias is None or isinstance(bias, torch.Tensor)
        return CompiledLinear(packed_weight(layer), bias, _is_exact(layer, activations))
    if isinstance(layer, Embedding | PackedEmbedding):
        return CompiledEmbedding(packed_weight(layer), None, _is_exact(layer, activations))
    if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
        return CompiledNorm(layer)
    for name, child in list(layer.named_children()):
        setattr(layer, name, _replaced(child, activations))
        if isinstance(layer, nn.ModuleList):
            return_freed_memory()
    return layer


def _is_exact(layer: nn.Module, activations: str) -> bool:
    """Whether activations meet the weights of a layer as they are."""
    if isinstance(layer, PackedLinear | PackedEmbedding):
        return activations == "float32"
    return activations != ("int8" if isinstance(layer, RowwiseLinear) else "bfloat16")
