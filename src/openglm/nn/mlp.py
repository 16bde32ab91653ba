"""The MLP of a block, plain or gated, and its activations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.nn.dropout import dropout


class SigmoidGELU(nn.Module):
    """x * sigmoid(1.702 x) (Hendrycks and Gimpel, GELUs, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, nn.Module] = {
    "gelu_tanh": nn.GELU(approximate="tanh"),  # Megatron: constants 0.79788456, 0.044715
    "gelu_erf": nn.GELU(),
    "gelu_sigmoid": SigmoidGELU(),
    "geglu": nn.GELU(),
    "swiglu": nn.SiLU(),
}


class MLP(nn.Module):
    """down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.linear_bias
        self.up_proj = nn.Linear(hidden, inner, bias)
        self.activation = ACTIVATIONS[config.activation]
        self.down_proj = nn.Linear(inner, hidden, bias)
        self.output_dropout = dropout(config.hidden_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = self.activation(self.up_proj(x))  # (B, T, F)
        return self.output_dropout(self.down_proj(hidden))  # type: ignore[no-any-return]


class GatedMLP(MLP):
    """down(act(gate(x)) * up(x)) (Shazeer, GLU Variants)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, config.linear_bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        hidden = self.activation(self.gate_proj(x)) * self.up_proj(x)  # (B, T, F)
        return self.output_dropout(self.down_proj(hidden))  # type: ignore[no-any-return]


def mlp(config: ModelConfig) -> MLP:
    """The MLP of one block."""
    return (GatedMLP if config.is_gated else MLP)(config)
