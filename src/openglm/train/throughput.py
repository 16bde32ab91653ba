"""Tokens/s and MFU: work done against the matrix speed measured on this very machine."""

from __future__ import annotations

import time

import torch

from openglm.config import ModelConfig
from openglm.data.batches import Batch


def training_flops(config: ModelConfig, batch: Batch) -> float:
    """Floating-point operations of forward and backward on one batch.

    Six per weight and token (two forward, four backward) for the blocks, the same for the output
    head on the scored tokens, and 12 * T * C per layer and token for attention scores and mixing
    (PaLM paper, appendix B). Embedding look-ups count as nothing.
    """
    c, f = config.hidden_size, config.intermediate_size
    length = batch.input_ids.shape[1]
    block = 6 * (4 * c * c + 2 * c * f) + 12 * length * c
    head = 6 * c * config.vocab_size
    return float(config.num_layers * block * batch.num_tokens + head * batch.num_targets)


def measure_peak_flops(dtype: torch.dtype, device: torch.device, seconds: float = 0.5) -> float:
    """Fastest matrix product of a size common in training, in FLOP/s."""
    size = 2048
    a = torch.randn(size, size, device=device).to(dtype)
    b = torch.randn(size, size, device=device).to(dtype)
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.matmul(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - start)
    return float(2 * size**3 / best)
