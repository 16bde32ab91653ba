"""Positions: tables added to the embedding (GLM paper, section 2.2), or rotations for attention."""

from __future__ import annotations

from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.nn.embedding import Table
from openglm.nn.rotary import RotaryPositions


class LearnedPositions(nn.Module):
    """One table indexed by the position in the text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position = Table(config.position_rows, config.hidden_size)

    def forward(
        self, x: Tensor, position_ids: Tensor, block_position_ids: Tensor
    ) -> tuple[Tensor, None]:
        """(B, T, C) embeddings and (B, T) int64 ids -> (B, T, C), no rotation."""
        return x + self.position(position_ids), None


class Learned2DPositions(nn.Module):
    """Two tables: place in the corrupted text, and place inside the blank (0 = context)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position = Table(config.position_rows, config.hidden_size)
        self.block_position = Table(config.position_rows, config.hidden_size)

    def forward(
        self, x: Tensor, position_ids: Tensor, block_position_ids: Tensor
    ) -> tuple[Tensor, None]:
        """(B, T, C) embeddings and (B, T) int64 ids -> (B, T, C), no rotation."""
        return x + (self.position(position_ids) + self.block_position(block_position_ids)), None


POSITIONS: dict[str, type[nn.Module]] = {
    "learned": LearnedPositions,
    "learned_2d": Learned2DPositions,
    "rotary": RotaryPositions,
    "rotary_2d": RotaryPositions,
}
