"""Weights that nobody trained, for measuring real sizes without the files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.model import build

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
