"""`NameMap`: a foreign layout as a table of rows; merging, splitting and inverse come from it.

A row says which of our tensors one foreign tensor holds (stacked along dimension 0), and along
which dimension tensor parallelism cuts each of them:

    foreign tensor on rank r = stack(cut(t, r) for t in targets)

Reading inverts that: unstack on every rank, then join the ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a map; `{i}` in the names stands for the layer.

    Args:
        source: foreign name.
        targets: our names, in the order in which they are stacked.
        split: dimension cut by tensor parallelism; None = every rank has a copy.
    """

    source: str
    targets: tuple[str, ...]
    split: int | None = None

    def at(self, layer: int) -> Row:
        """The row with `{i}` filled in."""
        return Row(
            self.source.replace("{i}", str(layer)),
            tuple(target.replace("{i}", str(layer)) for target in self.targets),
            self.split,
        )

    def read(self, ranks: Sequence[Tensor]) -> list[Tensor]:
        """Foreign tensors of all ranks -> our tensors, in the order of `targets`."""
        if self.split is None or len(ranks) == 1:
            return list(ranks[0].chunk(len(self.targets), dim=0))
        parts = [tensor.chunk(len(self.targets), dim=0) for tensor in ranks]
        return [torch.cat(same, dim=self.split) for same in zip(*parts, strict=True)]

    def write(self, tensors: Sequence[Tensor], rank: int, num_ranks: int) -> Tensor:
        """Our tensors -> the foreign tensor of one rank."""
        if self.split is not None:
            tensors = [tensor.chunk(num_ranks, dim=self.split)[rank] for tensor in tensors]
        return torch.cat(list(tensors), dim=0) if len(tensors) > 1 else tensors[0].contiguous()


@dataclass(frozen=True, slots=True)
class NameMap:
    """All rows of a layout."""

    rows: tuple[Row, ...]

    def expand(self, num_layers: int) -> dict[str, Row]:
        """Foreign name -> row, layers filled in."""
        expanded: dict[str, Row] = {}
        for row in self.rows:
            layers = range(num_layers) if "{i}" in row.source else range(1)
            for layer in layers:
                concrete = row.at(layer)
                expanded[concrete.source] = concrete
        return expanded
