"""Rounding to nearest with a scale, or a scale and a minimum, per group of columns.

    symmetric     w ~ scale (q - 2^(b - 1))        scale of either sign
    asymmetric    w ~ scale q + minimum

Clipping a few large weights makes the steps of all others finer. So several ranges are tried for
each group, and the one with the smallest squared error stays. Symmetric integers reach one step
further down than up; the sign of the scale turns that side to the largest weight.

Scales and minima are rounded to float16 before anything is divided by them: the integers are the
nearest for what is stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from openglm.kernels.packing import PackedWeight, Packing, pack, pack_scale
from openglm.memory import ROWS_AT_ONCE

SHRUNK = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75), 8: (1.0,)}
"""Ranges that are tried, as shares of the whole one. With 256 steps clipping never pays."""
LARGEST_SCALE = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers that each group of weights may become.

    Args:
        scale: (..., 1) float32 that float16 holds exactly.
        minimum: likewise; None = symmetric.
        bits: 4 or 8.
    """

    scale: Tensor
    minimum: Tensor | None
    bits: int

    @property
    def zero(self) -> int:
        """The stored integer of 0 in symmetric grids, 0 in others."""
        return 0 if self.minimum is not None else 1 << (self.bits - 1)

    def steps(self, weight: Tensor) -> Tensor:
        """(..., G) weights -> the nearest numbers of steps from zero or minimum, as floats."""
        inverse = 1 / torch.where(self.scale == 0, 1.0, self.scale)
        offset = weight if self.minimum is None else weight - self.minimum
        return (offset * inverse).round_().clamp_(-self.zero, (1 << self.bits) - 1 - self.zero)

    def integers(self, weight: Tensor) -> Tensor:
        """(..., G) weights -> the uint8 integers that are stored for them."""
        return self.steps(weight).add_(self.zero).to(torch.uint8)

    def nearest(self, weight: Tensor) -> Tensor:
        """(..., G) weights -> the nearest numbers of the grid."""
        plain = self.steps(weight).mul_(self.scale)
        return plain if self.minimum is None else plain.add_(self.minimum)


def find_grid(weight: Tensor, packing: Packing) -> Grid:
    """The best grid for each group.

    Args:
        weight: (..., G) float32, a group along the last dimension.
        packing: bits and symmetry.
    """
    candidates = _symmetric if packing.symmetric else _asymmetric
    best, least = None, None
    for share in SHRUNK[packing.bits]:
        grid = candidates(weight, packing.bits, share)
        error = grid.nearest(weight).sub_(weight).square_().sum(dim=-1, keepdim=True)
        if best is None or least is None:
            best, least = grid, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        scale = torch.where(better, grid.scale, best.scale)
        both = grid.minimum is not None and best.minimum is not None
        minimum = torch.where(better, grid.minimum, best.minimum) if both else None  # type: ignore[arg-type]
        best = Grid(scale, minimum, packing.bits)
    assert best is not None
    return best


def quantize_groups(weight: Tensor, packing: Packing) -> PackedWeight:
    """Quantizes a weight, some rows at a time.

    Args:
        weight: (N, K) floats.
        packing: with groups.
    """
    parts = []
    for rows in torch.split(weight, ROWS_AT_ONCE):
        missing = -rows.shape[1] % packing.group_size
        filled = pad(rows.float(), (0, missing), mode="replicate")  # zeros might widen the range
        groups = filled.view(len(rows), -1, packing.group_size)
        grid = find_grid(groups, packing)  # of (rows, groups, G)
        integers = grid.integers(groups).flatten(1)
        parts.append(pack_integers(integers[:, : rows.shape[1]], grid, packing))
    return join(parts)


def pack_integers(integers: Tensor, grid: Grid, packing: Packing) -> PackedWeight:
    """(N, K) uint8 integers and their (N, groups, 1) grid -> packed."""
    scale, minimum = (
        None if each is None else pack_scale(each[..., 0].half(), packing)
        for each in (grid.scale, grid.minimum)
    )
    assert scale is not None
    num_rows, num_columns = integers.shape
    values = pack(integers, packing)
    return PackedWeight(packing, num_rows, num_columns, values, scale, minimum)


def join(parts: list[PackedWeight]) -> PackedWeight:
    """Parts of one weight that each hold whole blocks of rows, the last perhaps fewer."""
    first, num_rows = parts[0], sum(part.out_features for part in parts)
    minima = [part.minimum for part in parts if part.minimum is not None]
    return PackedWeight(
        first.packing,
        num_rows,
        first.in_features,
        torch.cat([part.values for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat(minima) if minima else None,
    )


def _symmetric(weight: Tensor, bits: int, share: float) -> Grid:
    """The largest weight, times `share`, becomes the lowest integer."""
    place = weight.abs().argmax(dim=-1, keepdim=True)
    largest = weight.gather(-1, place)  # with its sign
    return Grid(_half(largest * (-share / (1 << (bits - 1)))), None, bits)


def _asymmetric(weight: Tensor, bits: int, share: float) -> Grid:
    """Lowest and highest weight, both drawn `share` near to their middle, become the ends."""
    low, high = weight.amin(dim=-1, keepdim=True), weight.amax(dim=-1, keepdim=True)
    middle, reach = (low + high) / 2, (high - low) / 2 * share
    minimum = _half(middle - reach)
    return Grid(_half((middle + reach - minimum) / ((1 << bits) - 1)), minimum, bits)


def _half(number: Tensor) -> Tensor:
    """Rounded to float16, held in float32."""
    return number.clamp(-LARGEST_SCALE, LARGEST_SCALE).half().float()
