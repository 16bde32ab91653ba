"""Loading a checkpoint into a network, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openglm.checkpoints.maps.table import SCALE
from openglm.checkpoints.random import RandomWeights
from openglm.checkpoints.source import naming, open_checkpoint
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.model import Transformer, build
from openglm.process import return_freed_memory
from openglm.quant.linear import RowwiseLinear, rowwise
from openglm.quant.rowwise import pack_nibbles, quantize_rows

TRIM_BYTES = 64 << 20
"""After so many bytes of weights, what the C library keeps of freed memory goes back."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights; for the other attributes see `Source`.

    Args:
        model: in eval mode.
        bits: of its row-wise quantized weights, as stored or as asked for; 0 = not quantized.
    """

    model: Transformer
    config: ModelConfig
    folder: Path
    layout: str
    token_ids: dict[str, int]
    stored_dtype: torch.dtype
    metadata: dict[str, Any]
    bits: int


def load_checkpoint(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    description: dict[str, Any] | None = None,
    exact_rotary: bool = False,
    bits: int = 0,
) -> Loaded:
    """Loads any checkpoint folder known to `openglm.checkpoints.layouts`.

    Memory: the final weights and one group of tensors; files are memory-mapped.

    Args:
        folder: the checkpoint.
        dtype: of the parameters; None = as stored.
        device: where they go.
        description: see `open_checkpoint`.
        exact_rotary: compute rotary angles in float32, where the released model does not.
        bits: 8 or 4 quantizes the weights of the blocks by the official row-wise scheme, tensor by
            tensor; 0 leaves them as stored.

    Raises:
        CheckpointError: see `open_checkpoint`; or the files are quantized to other bits.
    """
    source = open_checkpoint(folder, description, exact_rotary)
    with naming(folder):
        if source.bits and bits not in (0, source.bits):
            raise CheckpointError(
                f"the weights are quantized to {source.bits} bits and cannot be brought to {bits}",
                hint=f"load them with dtype=int{source.bits} or auto, or take the fp16 files",
            )
        bits = source.bits or bits
        # What is kept as it is stays a view of its file: opening that anew would double it.
        source.reopens = (
            bool(bits) or str(device) != "cpu" or dtype not in (None, source.stored_dtype)
        )
        model = _fill(source.config, source, dtype or source.stored_dtype, device, bits)
        source.warn_of_differing_heads()
    return Loaded(
        model,
        source.config,
        folder,
        source.layout,
        source.token_ids,
        source.stored_dtype,
        source.metadata,
        bits,
    )


def load_random(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    bits: int = 0,
    seed: int = 0,
) -> Transformer:
    """A network of these shapes with random weights; arguments as of `load_checkpoint`."""
    return _fill(config, RandomWeights(config, seed, dtype), dtype, device, bits)


def _fill(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
    bits: int,
) -> Transformer:
    """The network in eval mode, filled tensor by tensor."""
    model = rowwise(build(config), bits)
    num_bytes = 0
    for name, tensor in weights.items():
        _place(model, name, tensor, dtype, device)
        num_bytes += tensor.nbytes
        if num_bytes > TRIM_BYTES:  # or intermediate results of all sizes pile up
            return_freed_memory()
            num_bytes = 0
    return_freed_memory()
    return model.eval()


def _place(
    model: Transformer, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Puts a tensor into the network, quantized if the network wants integers."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if tensor.dtype == torch.int8:
        _assign(model, name, tensor.to(device))
    elif isinstance(layer, RowwiseLinear) and name.endswith(".weight"):
        # ChatGLM-6B, told by its positions, rounds the scale first.
        half_scale = model.config.position == "rotary_2d"
        values, scale = quantize_rows(tensor, layer.bits, half_scale)
        _assign(model, name, (pack_nibbles(values) if layer.bits == 4 else values).to(device))
        _assign(model, name + SCALE, scale.to(device, dtype))
    else:
        _assign(model, name, tensor.to(device, dtype))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))
