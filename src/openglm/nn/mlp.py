"""The two-layer MLP of a block and its activations."""

from __future__ import annotations

from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.nn.dropout import dropout

ACTIVATIONS: dict[str, nn.Module] = {
    "gelu_tanh": nn.GELU(approximate="tanh"),  # Megatron: constants 0.79788456, 0.044715
    "gelu_erf": nn.GELU(),
}


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACTIVATIONS[config.activation]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_dropout = dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = self.activation(self.up_proj(x))  # (B, T, F)
        return self.output_dropout(self.down_proj(hidden))  # type: ignore[no-any-return]
