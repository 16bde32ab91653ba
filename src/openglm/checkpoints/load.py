"""Loading a checkpoint into a network, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.checkpoints.random import RandomQuantizedWeights, RandomWeights
from openglm.checkpoints.source import Source, naming, open_checkpoint
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.model import Transformer, build
from openglm.process import return_freed_memory
from openglm.quant.transform import QuantizedWeights, assign, quantized
from openglm.scheme import Scheme

TRIM_BYTES = 64 << 20
"""After so many bytes of weights, what the C library keeps of freed memory goes back."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights; for the other attributes see `Source`.

    Args:
        model: in eval mode.
        scheme: of its quantized weights, as stored or as asked for; None = not quantized.
    """

    model: Transformer
    config: ModelConfig
    folder: Path
    layout: str
    token_ids: dict[str, int]
    stored_dtype: torch.dtype
    metadata: dict[str, Any]
    scheme: Scheme | None


def load_checkpoint(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    description: dict[str, Any] | None = None,
    exact_rotary: bool = False,
    scheme: Scheme | None = None,
) -> Loaded:
    """Loads any checkpoint folder known to `openglm.checkpoints.layouts`.

    Memory: the final weights and one group of tensors; files are memory-mapped.

    Args:
        folder: the checkpoint.
        dtype: of the parameters; None = as stored.
        device: where they go.
        description: see `open_checkpoint`.
        exact_rotary: compute rotary angles in float32, where the released model does not.
        scheme: quantizes weights, tensor by tensor; None leaves them as stored.

    Raises:
        CheckpointError: see `open_checkpoint`; or the files are quantized otherwise.
    """
    return load_source(open_checkpoint(folder, description, exact_rotary), dtype, device, scheme)


def load_source(
    source: Source,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    scheme: Scheme | None = None,
) -> Loaded:
    """Loads what is open already; see `load_checkpoint`."""
    with naming(source.folder):
        if source.scheme is not None and scheme not in (None, source.scheme):
            raise CheckpointError(
                f"the weights are quantized, {source.scheme.name}, and cannot be brought to "
                f"{scheme.name if scheme else ''}",
                hint=f"load them with dtype={source.scheme.name} or auto, or take the fp16 files",
            )
        is_new = source.scheme is None and scheme is not None
        scheme = source.scheme or scheme
        # What is kept as it is stays a view of its file: opening that anew would double it.
        source.reopens = is_new or str(device) != "cpu" or dtype not in (None, source.stored_dtype)
        weights = QuantizedWeights(source, source.config, scheme) if is_new and scheme else source
        model = _fill(source.config, weights, dtype or source.stored_dtype, device, scheme)
        source.warn_of_differing_heads()
    return Loaded(
        model,
        source.config,
        source.folder,
        source.layout,
        source.token_ids,
        source.stored_dtype,
        source.metadata,
        scheme,
    )


def load_random(
    config: ModelConfig,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    scheme: Scheme | None = None,
    seed: int = 0,
) -> Transformer:
    """A network of these shapes with random weights; arguments as of `load_checkpoint`."""
    weights: Mapping[str, Tensor] = (
        RandomWeights(config, seed, dtype)
        if scheme is None
        else RandomQuantizedWeights(config, scheme, seed, dtype)
    )
    return _fill(config, weights, dtype, device, scheme)


def _fill(
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    dtype: torch.dtype,
    device: torch.device | str,
    scheme: Scheme | None,
) -> Transformer:
    """The network in eval mode, filled tensor by tensor with weights as `scheme` has them."""
    model = quantized(build(config), scheme, dtype)
    num_bytes = 0
    for name, tensor in weights.items():
        assign(model, name, tensor, dtype, device)
        num_bytes += tensor.nbytes
        if num_bytes > TRIM_BYTES:  # or intermediate results of all sizes pile up
            return_freed_memory()
            num_bytes = 0
    return_freed_memory()
    return model.eval()
