"""`ModelConfig` -> module: on the meta device (shapes only), empty, or freshly initialised."""

from __future__ import annotations

import math

import torch
from torch import nn

from openglm.config import ModelConfig
from openglm.model.codegeex import TopQueryTransformer
from openglm.model.transformer import Transformer


def build(config: ModelConfig, device: torch.device | str = "meta") -> Transformer:
    """Builds the network in float32; on "meta" it takes no memory and no time for any size."""
    with torch.device(device):
        return (TopQueryTransformer if config.top_query else Transformer)(config)


@torch.no_grad()
def initialize(model: Transformer, seed: int) -> None:
    """Draws fresh weights as the official GLM training does.

    Weights and tables N(0, initializer_range); the two output projections of each block
    N(0, initializer_range / sqrt(2 L)) (Megatron-LM scaling); biases 0; norms 1 and 0.
    """
    config = model.config
    generator = torch.Generator().manual_seed(seed)
    scaled = config.initializer_range / math.sqrt(2 * config.num_layers)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Embedding):
            is_output = name.endswith(("o_proj", "down_proj"))
            std = scaled if is_output else config.initializer_range
            module.weight.normal_(0.0, std, generator=generator)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
