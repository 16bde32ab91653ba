"""How many bytes a model takes, by arithmetic on its shapes. No torch.

Official INT8 and INT4 keep embeddings, norms, biases and head in 16 bits, and have one fp16 scale
per row of a quantized weight: a ChatGLM2-6B in INT4 has 3.92 GB, not half a byte per parameter.
"""

from __future__ import annotations

from openglm.config import ModelConfig

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
QUANTIZED_BITS = {"int8": 8, "int4": 4}
KEPT_WIDTH = 2
"""Bytes of what quantization leaves alone, of a scale, and of cached keys and values."""


def linear_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(out, in) of the weights of one block that quantization applies to."""
    c, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    kv = config.kv_heads * d
    return [(c, c), (kv, c), (kv, c), (c, c), *[(f, c)] * (1 + config.is_gated), (c, f)]


def weight_bytes(config: ModelConfig, dtype: str) -> int:
    """All weights.

    Args:
        config: the architecture.
        dtype: a key of `WIDTHS` or `QUANTIZED_BITS`.
    """
    if dtype in WIDTHS:
        return config.num_parameters * WIDTHS[dtype]
    shapes = linear_shapes(config) * config.num_cached_layers
    in_linears = sum(rows * columns for rows, columns in shapes)
    packed = sum(rows * columns * QUANTIZED_BITS[dtype] // 8 for rows, columns in shapes)
    scales = sum(rows for rows, _ in shapes) * KEPT_WIDTH
    return packed + scales + (config.num_parameters - in_linears) * KEPT_WIDTH


def cache_bytes(config: ModelConfig, num_tokens: int, width: float = KEPT_WIDTH) -> int:
    """Keys and values of one sequence: 2 * layers * key/value heads * head_dim per token."""
    per_token = 2 * config.num_cached_layers * config.kv_heads * config.head_dim
    return int(per_token * num_tokens * width)
