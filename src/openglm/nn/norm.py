"""The norms of the family, both with a learned scale; statistics are taken in float32 by torch."""

from __future__ import annotations

from torch import nn

from openglm.config import ModelConfig

NORMS: dict[str, type[nn.LayerNorm] | type[nn.RMSNorm]] = {
    "layernorm": nn.LayerNorm,
    "rmsnorm": nn.RMSNorm,
}


def norm(config: ModelConfig) -> nn.Module:
    """A norm over the hidden size."""
    return NORMS[config.norm](config.hidden_size, eps=config.norm_eps)
