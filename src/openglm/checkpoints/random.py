"""Weights that nobody trained, for measuring real sizes without the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.model import build
from openglm.quant.linear import Packed
from openglm.quant.transform import WEIGHT, QuantizedWeights
from openglm.scheme import Scheme

POOL = 4_194_301
"""Numbers drawn, a prime; weights are cut out of them, since drawing billions takes minutes."""


class RandomWeights(Mapping[str, Tensor]):
    """Our name -> a random tensor, made when it is asked for.

    Norms are 1 and 0, everything else N(0, initializer_range).

    Args:
        config: the architecture.
        seed: of the numbers.
        dtype: of the tensors.
    """

    def __init__(self, config: ModelConfig, seed: int, dtype: torch.dtype) -> None:
        self.shapes = {name: p.shape for name, p in build(config).named_parameters()}
        self.dtype = dtype
        self.generator = torch.Generator().manual_seed(seed)
        pool = torch.empty(POOL).normal_(0, config.initializer_range, generator=self.generator)
        self.pool = pool.to(dtype).repeat(2)  # every cut of POOL numbers lies in one piece

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        parent, _, leaf = name.rpartition(".")
        if parent.endswith("norm"):
            return torch.full(shape, float(leaf == "weight"), dtype=self.dtype)
        tensor = torch.empty(shape, dtype=self.dtype)
        for piece in torch.split(tensor.view(-1), POOL):
            start = int(torch.randint(POOL, (1,), generator=self.generator))
            piece.copy_(self.pool[start : start + len(piece)])
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


class RandomQuantizedWeights(QuantizedWeights):
    """Random weights as a scheme has them, drawn as integers: rounding billions takes minutes.

    Args:
        config: the architecture.
        scheme: how they are quantized.
        seed: of the numbers.
        dtype: of what is not quantized.
    """

    def __init__(self, config: ModelConfig, scheme: Scheme, seed: int, dtype: torch.dtype) -> None:
        super().__init__(RandomWeights(config, seed, dtype), config, scheme)
        self.generator = torch.Generator().manual_seed(seed)
        # Uniform integers of b bits have the standard deviation 2^b / sqrt(12).
        self.scale = config.initializer_range * 12**0.5 / 2**scheme.bits

    def quantize(self, name: str) -> dict[str, Tensor]:
        """See `QuantizedWeights.quantize`; minima put zero into the middle."""
        layer = self.layers[name]
        fills = {"weight_minimum": -self.scale * (1 << (self.scheme.bits - 1))}
        made = {}
        for leaf, parameter in layer.named_parameters(recurse=False):
            if leaf != "bias":
                value = torch.empty(parameter.shape, dtype=parameter.dtype)
                made[f"{name.removesuffix(WEIGHT)}.{leaf}"] = value.fill_(
                    fills.get(leaf, self.scale)
                )
        integers = made[name]
        limits = (0, 256) if isinstance(layer, Packed) else (-128, 128)
        pool = torch.randint(*limits, (POOL,), dtype=integers.dtype, generator=self.generator)
        for piece in torch.split(integers.view(-1), POOL):
            piece.copy_(pool[: len(piece)])
        return made
