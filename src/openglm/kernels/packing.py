"""The packed layout of quantized weights: one for files, CPU kernels and GPU kernels.

Output rows stand in blocks of 16, so that one vector register holds the same columns of 16 rows and
a product needs no sum across its lanes:

    INT4  uint8 (N / 16, K / 8, 64)   byte [b, s, 4 r + j] = q[16 b + r, 8 s + j]
                                                           | q[16 b + r, 8 s + 4 + j] << 4
    INT8  uint8 (N / 16, K / 4, 64)   byte [b, s, 4 r + j] = q[16 b + r, 4 s + j]
    scale        (N / 16, K / G, 16)  of G columns each; (N / 16, 1, 16) row-wise
    minimum      like scale; only of asymmetric weights

    symmetric     w = scale (q - 2^(bits - 1))
    asymmetric    w = scale q + minimum

Rows are filled up to whole blocks and columns to whole groups, with zeros: those rows are never
given out, and those columns meet activations that are zero. Weights that are not quantized stand
likewise; products of bfloat16 are made of pairs of columns:

    bfloat16  (N / 16, K / 2, 16, 2)
    float16   (N / 16, K, 16, 1)
    float32   (N / 16, K, 16, 1)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from openglm.memory import BLOCK_ROWS
from openglm.scheme import GROUP_SIZES

LARGEST_INT8 = 127
"""Symmetric INT8 leaves -128 out, so that a sign can be moved to the other factor."""
ROWWISE_COLUMNS = 128
"""Columns are filled up to a multiple of this where a scale belongs to a whole row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How weights are quantized and laid out.

    Args:
        bits: 4 or 8.
        group_size: columns that share a scale, one of `GROUP_SIZES`; 0 = the whole row.
        symmetric: zero is in the middle of the integers; else each group has its own minimum.
    """

    bits: int
    group_size: int = 0
    symmetric: bool = True

    def __post_init__(self) -> None:
        assert self.bits in (4, 8)
        assert self.group_size in (0, *GROUP_SIZES)
        assert self.group_size or self.symmetric

    @property
    def zero(self) -> int:
        """The integer that stands for 0 in symmetric weights."""
        return 1 << (self.bits - 1)

    @property
    def columns_at_once(self) -> int:
        """Columns that activations are quantized in, and that are filled up."""
        return self.group_size or ROWWISE_COLUMNS

    def padded(self, out_features: int, in_features: int) -> tuple[int, int]:
        """Rows and columns with what fills them up."""
        return (
            _round_up(out_features, BLOCK_ROWS),
            _round_up(in_features, self.columns_at_once),
        )

    def shapes(self, out_features: int, in_features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the packed tensors: `weight` (uint8), `weight_scale`, `weight_minimum`."""
        rows, columns = self.padded(out_features, in_features)
        blocks = rows // BLOCK_ROWS
        groups = columns // self.group_size if self.group_size else 1
        found: dict[str, tuple[int, ...]] = {
            "weight": (blocks, columns * self.bits // 32, 64),
            "weight_scale": (blocks, groups, BLOCK_ROWS),
        }
        return found if self.symmetric else found | {"weight_minimum": (blocks, groups, BLOCK_ROWS)}


@dataclass(frozen=True, slots=True)
class PackedWeight:
    """A quantized (N, K) weight.

    Args:
        packing: how to read it.
        out_features: N, without what fills the last block.
        in_features: K, likewise.
        values: uint8.
        scale: float16 of groups, float32 of rows.
        minimum: float16, of asymmetric weights.
    """

    packing: Packing
    out_features: int
    in_features: int
    values: Tensor
    scale: Tensor
    minimum: Tensor | None = None


def pack(integers: Tensor, packing: Packing) -> Tensor:
    """(N, K) uint8 integers -> packed uint8 values."""
    rows, columns = packing.padded(*integers.shape)
    fill = packing.zero if packing.symmetric else 0
    filled = pad(
        integers, (0, columns - integers.shape[1], 0, rows - integers.shape[0]), value=fill
    )
    per_step = 32 // packing.bits  # columns of 64 bytes
    steps = filled.view(rows // BLOCK_ROWS, BLOCK_ROWS, columns // per_step, per_step // 4, 4)
    steps = steps.permute(0, 2, 3, 1, 4)  # (blocks, steps, nibbles, rows, 4)
    bytes_ = steps[:, :, 0] | steps[:, :, 1] << 4 if packing.bits == 4 else steps[:, :, 0]
    return bytes_.reshape(rows // BLOCK_ROWS, columns // per_step, 64)


def unpack(values: Tensor, packing: Packing) -> Tensor:
    """Packed values of whole blocks -> (16 blocks, padded K) uint8 integers."""
    bytes_ = values.view(*values.shape[:2], 1, BLOCK_ROWS, 4)
    if packing.bits == 4:
        bytes_ = torch.cat([bytes_ & 15, bytes_ >> 4], dim=2)
    return bytes_.permute(0, 3, 1, 2, 4).reshape(len(values) * BLOCK_ROWS, -1)


def pack_scale(scale: Tensor, packing: Packing) -> Tensor:
    """(N, groups) -> (N / 16, groups, 16), rows filled up with zeros; of minima likewise."""
    rows = _round_up(len(scale), BLOCK_ROWS)
    filled = pad(scale, (0, 0, 0, rows - len(scale)))
    return filled.view(rows // BLOCK_ROWS, BLOCK_ROWS, -1).transpose(1, 2).contiguous()


def unpack_scale(scale: Tensor) -> Tensor:
    """The inverse of `pack_scale`, with what fills the last block: (16 blocks, groups)."""
    return scale.transpose(1, 2).reshape(len(scale) * BLOCK_ROWS, -1)


def dequantize(weight: PackedWeight, dtype: torch.dtype, blocks: slice = slice(None)) -> Tensor:
    """The weights of some blocks of rows, (up to 16 blocks, K), without what fills them up."""
    packing = weight.packing
    integers = unpack(weight.values[blocks], packing).float()
    scale = unpack_scale(weight.scale[blocks]).float()  # (rows, groups)
    grouped = integers.view(*scale.shape, -1)  # (rows, groups, G)
    if weight.minimum is None:
        floats = (grouped - packing.zero) * scale[..., None]
    else:
        floats = (
            grouped * scale[..., None] + unpack_scale(weight.minimum[blocks]).float()[..., None]
        )
    first = (blocks.start or 0) * BLOCK_ROWS
    num_rows = min(len(floats), weight.out_features - first)
    whole: Tensor = floats.flatten(1)[:num_rows, : weight.in_features].to(dtype)
    return whole


@dataclass(frozen=True, slots=True)
class PackedFloats:
    """An (N, K) weight that is not quantized.

    Args:
        out_features: N, without what fills the last block.
        in_features: K, likewise.
        values: bfloat16, float16 or float32.
    """

    out_features: int
    in_features: int
    values: Tensor

    @property
    def columns(self) -> int:
        """K with what fills it up."""
        return self.values.shape[1] * self.values.shape[3]


def pack_floats(weight: Tensor) -> Tensor:
    """(N, K) bfloat16, float16 or float32 -> packed."""
    together = 2 if weight.dtype == torch.bfloat16 else 1
    rows, columns = (_round_up(n, to) for n, to in zip(weight.shape, (16, together), strict=True))
    if (rows, columns) != weight.shape:
        weight = pad(weight, (0, columns - weight.shape[1], 0, rows - weight.shape[0]))
    blocks = weight.view(rows // BLOCK_ROWS, BLOCK_ROWS, columns // together, together)
    return blocks.transpose(1, 2).contiguous()


def rows_of(packed: PackedFloats, ids: Tensor) -> Tensor:
    """Rows `ids` of a packed weight, (*ids, K)."""
    found = packed.values[ids // BLOCK_ROWS, :, ids % BLOCK_ROWS]  # (*ids, steps, together)
    return found.flatten(-2)[..., : packed.in_features]


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
