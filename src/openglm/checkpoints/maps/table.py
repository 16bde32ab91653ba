"""`NameMap`: a foreign layout as a table of rows; merging, splitting and inverse come from it.

A row says which of our tensors one foreign tensor holds (stacked along dimension 0), and along
which dimension tensor parallelism cuts each of them:

    foreign tensor on rank r = stack(cut(t, r) for t in targets)

Stacking is by whole tensors [q; k; v], or, with `group`, by groups of rows: [q of head 0; k of
head 0; v of head 0; q of head 1; ...]. Reading inverts that: unstack on every rank, then join.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]
SCALE = "_scale"
"""Ending of the name of a quantized weight's scales, in the official files and in ours."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a map; `{i}` in the names stands for the layer.

    Args:
        source: foreign name.
        targets: our names, in the order in which they are stacked; () = known and not needed.
        split: dimension cut by tensor parallelism; None = every rank has a copy.
        group: rows of each target that lie together; None = all of them.
        optional: files may lack it.
        repeats: our name of a tensor that this one repeats; it must be equal.
    """

    source: str
    targets: tuple[str, ...] = ()
    split: int | None = None
    group: int | None = None
    optional: bool = False
    repeats: str | None = None

    def at(self, layer: int) -> Row:
        """The row with `{i}` filled in."""
        return Row(
            self.source.replace("{i}", str(layer)),
            tuple(target.replace("{i}", str(layer)) for target in self.targets),
            self.split,
            self.group,
            self.optional,
            self.repeats,
        )

    def shape(self, targets: Sequence[Shape], num_ranks: int) -> Shape:
        """The shape of the foreign tensor on each of `num_ranks`."""
        shape = [sum(target[0] for target in targets), *targets[0][1:]]
        if self.split is not None:
            shape[self.split] //= num_ranks
        return tuple(shape)

    def read(self, ranks: Sequence[Tensor], targets: Sequence[Shape]) -> list[Tensor]:
        """Foreign tensors of all ranks -> our tensors of these shapes."""
        cut = len(ranks) if self.split == 0 else 1
        sizes = [target[0] // cut for target in targets]
        parts = [self._unstack(tensor, sizes) for tensor in ranks]
        if self.split is None or len(ranks) == 1:
            return parts[0]
        return [torch.cat(same, dim=self.split) for same in zip(*parts, strict=True)]

    def write(self, tensors: Sequence[Tensor], rank: int, num_ranks: int) -> Tensor:
        """Our tensors -> the foreign tensor of one rank."""
        if self.split is not None:
            tensors = [tensor.chunk(num_ranks, dim=self.split)[rank] for tensor in tensors]
        if len(tensors) == 1:
            return tensors[0].contiguous()
        if self.group is None:
            return torch.cat(list(tensors), dim=0)
        grouped = [t.reshape(-1, self.group, *t.shape[1:]) for t in tensors]  # (heads, group, ...)
        return torch.stack(grouped, dim=1).flatten(0, 2)  # (heads, targets, group, ...), joined

    def _unstack(self, tensor: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        if len(sizes) == 1 or self.group is None:
            return list(torch.split(tensor, list(sizes)))
        # (heads, targets, group, ...)
        grouped = tensor.reshape(-1, len(sizes), self.group, *tensor.shape[1:])
        return [part.flatten(0, 1) for part in grouped.unbind(1)]


@dataclass(frozen=True, slots=True)
class NameMap:
    """All rows of a layout."""

    rows: tuple[Row, ...]

    def with_scales(self, names: Container[str]) -> NameMap:
        """This map, and a row for the scales of each weight that has some among our `names`."""
        scales = (
            dataclasses.replace(
                row,
                source=row.source + SCALE,
                targets=tuple(target + SCALE for target in row.targets),
                split=None,  # quantized weights are never cut over ranks
            )
            for row in self.rows
            if row.targets and row.targets[0].replace("{i}", "0") + SCALE in names
        )
        return NameMap((*self.rows, *scales))

    def expand(self, num_layers: int) -> dict[str, Row]:
        """Foreign name -> row, layers filled in."""
        expanded: dict[str, Row] = {}
        for row in self.rows:
            layers = range(num_layers) if "{i}" in row.source else range(1)
            for layer in layers:
                concrete = row.at(layer)
                expanded[concrete.source] = concrete
        return expanded


def pair(source: str, target: str, split: int | None = None) -> tuple[Row, Row]:
    """Rows of a module with weight and bias; the bias of a column-cut linear is not cut."""
    return (
        Row(f"{source}.weight", (f"{target}.weight",), split),
        Row(f"{source}.bias", (f"{target}.bias",), 0 if split == 0 else None),
    )
