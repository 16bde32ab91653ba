"""Dropout that costs nothing when its probability is zero."""

from __future__ import annotations

from torch import nn


def dropout(probability: float) -> nn.Module:
    """`nn.Dropout`, or `nn.Identity` for probability 0 (a CPU pass over the tensor saved)."""
    return nn.Dropout(probability) if probability > 0 else nn.Identity()
