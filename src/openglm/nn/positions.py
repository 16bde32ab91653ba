"""Learned position embeddings: one table, or GLM's two (GLM paper, section 2.2)."""

from __future__ import annotations

from torch import Tensor, nn

from openglm.config import ModelConfig


class LearnedPositions(nn.Module):
    """One table indexed by the position in the text."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.position_rows, config.hidden_size)

    def forward(self, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """(B, T) int64 ids -> (B, T, C); block positions are not used."""
        return self.position(position_ids)  # type: ignore[no-any-return]


class Learned2DPositions(nn.Module):
    """Two tables: place in the corrupted text, and place inside the blank (0 = context)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.position = nn.Embedding(config.position_rows, config.hidden_size)
        self.block_position = nn.Embedding(config.position_rows, config.hidden_size)

    def forward(self, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """(B, T) int64 ids -> (B, T, C)."""
        positions = self.position(position_ids) + self.block_position(block_position_ids)
        return positions  # type: ignore[no-any-return]


POSITIONS: dict[str, type[nn.Module]] = {
    "learned": LearnedPositions,
    "learned_2d": Learned2DPositions,
}
