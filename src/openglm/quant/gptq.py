"""GPTQ: rounding that makes up for each column's error in the columns not yet rounded.

With H = sum of x x^T over calibration inputs, the error of a layer is tr(E H E^T) for a change E of
its weights. Columns are rounded one by one; what is lost in column j is spread over the others by
row j of U, the upper Cholesky factor of H^-1 (Frantar et al. 2022, GPTQ, algorithm 1):

    e = (w_j - round(w_j)) / U_jj       w_k -= e U_jk  for k > j

The grid of a group is found when its first column is reached, from the weights as they are then.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from openglm.errors import DataError
from openglm.kernels.packing import PackedWeight, Packing
from openglm.quant.groupwise import Grid, find_grid, pack_integers

DAMPING = (0.01, 0.1, 1.0)
"""Added to the diagonal of H, as shares of its mean: the paper's, and more if H stays singular."""
COLUMNS = 128
"""Rounded before the rest of the weight is touched (the paper's B); a multiple of every group."""


@torch.no_grad()
def quantize_calibrated(
    weight: Tensor, moments: Tensor, packing: Packing, activation_order: bool = False
) -> PackedWeight:
    """Quantizes a weight for inputs with these second moments.

    Memory: a copy of the weight and two of the moments in float32, and another of the moments where
    columns are padded or reordered.

    Args:
        weight: (N, K) floats.
        moments: (K, K) float32, the sum of x x^T.
        packing: with groups.
        activation_order: round the columns with the largest inputs first, on grids found before.

    Raises:
        DataError: the moments are not finite.
    """
    num_columns = weight.shape[1]
    missing = -num_columns % packing.group_size
    w = pad(weight.float(), (0, missing), mode="replicate")
    h = pad(moments, (0, missing, 0, missing)) if missing else moments
    order = torch.arange(w.shape[1])
    static = None
    if activation_order:
        order = torch.argsort(h.diagonal(), descending=True)
        static = find_grid(w.view(len(w), -1, packing.group_size), packing)
        h = h[order[:, None], order]
    spread = inverse_factor(h)
    integers = torch.empty(w.shape, dtype=torch.uint8)
    rounding = _Rounding(packing, static, integers)
    w = w[:, order]  # a copy, which is changed
    for start in range(0, len(order), COLUMNS):
        piece = slice(start, start + COLUMNS)
        errors = rounding.columns(w[:, piece], spread[piece, piece], order[piece])
        w[:, start + COLUMNS :] -= errors @ spread[piece, start + COLUMNS :]
    return pack_integers(integers[:, :num_columns], rounding.grid, packing)


@dataclass(slots=True)
class _Rounding:
    """The integers and grids found so far.

    Args:
        packing: bits, group size and symmetry.
        static: grids of all groups, (N, groups, 1), if they do not depend on the rounding.
        integers: (N, K) uint8, filled column by column.
    """

    packing: Packing
    static: Grid | None
    integers: Tensor
    found: list[Grid] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.found = []

    def columns(self, w: Tensor, spread: Tensor, places: Tensor) -> Tensor:
        """Rounds some columns in turn.

        Args:
            w: (N, n) weights, changed in place.
            spread: (n, n), how an error spreads among them.
            places: (n,) where the columns stand in the weight.

        Returns:
            (N, n) errors, to be spread over the columns behind.
        """
        errors = torch.empty_like(w)
        for j, place in enumerate(places.tolist()):
            grid = self._grid(w, j, place)
            column = w[:, j : j + 1]
            self.integers[:, place] = grid.integers(column)[:, 0]
            error = (column - grid.nearest(column)) / spread[j, j]
            errors[:, j] = error[:, 0]
            w[:, j + 1 :] -= error * spread[j, j + 1 :]
        return errors

    def _grid(self, w: Tensor, j: int, place: int) -> Grid:
        """The (N, 1) grid of column j, which stands at `place`."""
        size = self.packing.group_size
        if self.static is not None:
            return _part(self.static, place // size)
        if place % size == 0:
            self.found.append(find_grid(w[:, j : j + size], self.packing))
        return self.found[-1]

    @property
    def grid(self) -> Grid:
        """The grids of all groups, (N, groups, 1)."""
        if self.static is not None:
            return self.static
        scale = torch.stack([grid.scale for grid in self.found], dim=1)
        minima = [grid.minimum for grid in self.found if grid.minimum is not None]
        return Grid(scale, torch.stack(minima, dim=1) if minima else None, self.packing.bits)


def _part(grid: Grid, group: int) -> Grid:
    minimum = None if grid.minimum is None else grid.minimum[:, group]
    return Grid(grid.scale[:, group], minimum, grid.bits)


def inverse_factor(moments: Tensor) -> Tensor:
    """The upper Cholesky factor U of the damped inverse: H^-1 = U^T U.

    Columns that no input ever used have a moment of 0; their weights are free, and 1 stands for it.

    Args:
        moments: (K, K) float32.

    Raises:
        DataError: they are not finite.
    """
    if not torch.isfinite(moments).all():
        raise DataError(
            "the calibration text gives activations that are not finite",
            hint="are the weights damaged?",
        )
    diagonal = moments.diagonal()
    unused = torch.where(diagonal == 0, 1.0, 0.0)
    mean = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    for share in DAMPING:
        work = moments.clone()  # each step lets go of the one before: two matrices at a time
        work.diagonal().add_(unused + share * mean)
        work, failed = torch.linalg.cholesky_ex(work)
        if failed:
            continue
        work = torch.cholesky_inverse(work)
        work, failed = torch.linalg.cholesky_ex(work, upper=True)
        if not failed:
            return torch.as_tensor(work)
    raise DataError("the second moments of the calibration text cannot be inverted")
