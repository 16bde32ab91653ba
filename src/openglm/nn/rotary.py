"""Rotary positions: pairs of elements of queries and keys turn by an angle (RoFormer, section 3.2).

    angle_j(p) = p * theta^(-2j / r)        j = 0 ... r/2 - 1, r = elements that turn together

The released models compute these angles in half precision, and were trained so: at position 1000
of ChatGLM-6B a fp16 angle is off by up to 0.5. `rotary_compute` and `rotary_frequencies` of
`ModelConfig` say which precision that is; both "float32" gives exact angles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Rotation:
    """Cosines and sines of one forward call, each (B, T, 1, P, R) float32: P planes of R pairs."""

    cos: Tensor
    sin: Tensor


def frequencies(config: ModelConfig, width: int) -> Tensor:
    """(width / 2,) inverse frequencies in the dtype of `rotary_compute`, as released."""
    compute = DTYPES[config.rotary_compute]
    stepwise = config.rotary_frequencies == "as_compute"
    steps = torch.arange(0, width, 2, device="cpu", dtype=compute if stepwise else torch.float32)
    inverse = 1.0 / (config.rope_theta ** (steps / width))
    return (inverse if stepwise else inverse.to(DTYPES[config.rotary_frequencies])).to(compute)


class RotaryPositions(nn.Module):
    """The rotations of one plane (position ids), or two (position and block-position ids)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.num_planes = 2 if config.position == "rotary_2d" else 1
        self.frequencies = frequencies(config, config.rotary_width // self.num_planes)  # (R,)
        self.copies: dict[torch.device, Tensor] = {}

    def forward(
        self, x: Tensor, position_ids: Tensor, block_position_ids: Tensor
    ) -> tuple[Tensor, Rotation]:
        """(B, T, C) embeddings and (B, T) int64 ids -> the same embeddings, and the rotation."""
        ids = torch.stack([position_ids, block_position_ids][: self.num_planes], dim=-1)
        # Copied once for each device: a CUDA graph cannot record a copy from the host.
        if ids.device not in self.copies:
            self.copies[ids.device] = self.frequencies.to(ids.device)
        frequencies = self.copies[ids.device]
        angles = ids[..., None].to(frequencies.dtype) * frequencies  # (B, T, P, R)
        # A float32 cosine, rounded, is the half-precision cosine of torch.
        tables = (f(angles.float()).to(angles.dtype).float() for f in (torch.cos, torch.sin))
        cos, sin = (table[:, :, None] for table in tables)  # (B, T, 1, P, R)
        return x, Rotation(cos, sin)


def rotate_half_split(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns element j of each plane with element j + R. (B, T, H, D) -> the same."""
    return _rotate(x, rotation, pair_dim=-2)


def rotate_interleaved(x: Tensor, rotation: Rotation) -> Tensor:
    """Turns element 2j of each plane with element 2j + 1. (B, T, H, D) -> the same."""
    return _rotate(x, rotation, pair_dim=-1)


def no_rotation(x: Tensor, rotation: object) -> Tensor:
    """For learned positions."""
    return x


ROTATIONS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "half_split": rotate_half_split,
    "interleaved": rotate_interleaved,
}


def _rotate(x: Tensor, rotation: Rotation, pair_dim: int) -> Tensor:
    num_planes, num_pairs = rotation.cos.shape[-2:]
    width = 2 * num_planes * num_pairs
    pairs = (num_planes, 2, num_pairs) if pair_dim == -2 else (num_planes, num_pairs, 2)
    paired = x[..., :width].float().reshape(*x.shape[:-1], *pairs)
    first, second = paired.unbind(pair_dim)  # (B, T, H, P, R)
    cos, sin = rotation.cos, rotation.sin
    turned = torch.stack([first * cos - second * sin, second * cos + first * sin], dim=pair_dim)
    turned = turned.flatten(-3).to(x.dtype)  # (B, T, H, width)
    return torch.cat([turned, x[..., width:]], dim=-1) if width < x.shape[-1] else turned
