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


def weight_bytes(config: ModelConfig, dtype: str, kept_width: int = KEPT_WIDTH) -> int:
    """All weights.

    Args:
        config: the architecture.
        dtype: a key of `WIDTHS` or `QUANTIZED_BITS`.
        kept_width: bytes of a number that quantization leaves alone: 2 in files and on GPUs, 4 on
            CPUs, where float32 is computed in.
    """
    if dtype in WIDTHS:
        return config.num_parameters * WIDTHS[dtype]
    shapes = linear_shapes(config) * config.num_cached_layers
    in_linears = sum(rows * columns for rows, columns in shapes)
    packed = sum(rows * columns * QUANTIZED_BITS[dtype] // 8 for rows, columns in shapes)
    scales = sum(rows for rows, _ in shapes) * kept_width
    return packed + scales + (config.num_parameters - in_linears) * kept_width


def cache_bytes(config: ModelConfig, num_tokens: int, width: float = KEPT_WIDTH) -> int:
    """Keys and values of one sequence: 2 * layers * key/value heads * head_dim per token."""
    per_token = 2 * config.num_cached_layers * config.kv_heads * config.head_dim
    return int(per_token * num_tokens * width)


def streamed_bytes(config: ModelConfig, dtype: str, kept_width: int = KEPT_WIDTH) -> int:
    """Weights that each new token reads: all but tables in which only a row is looked up."""
    num_tables = {"learned_2d": 2, "learned": 1}.get(config.position, 0) + config.top_query
    rows = num_tables * config.position_rows
    rows += 0 if config.tie_word_embeddings else config.vocab_size
    width = WIDTHS.get(dtype, kept_width)
    return weight_bytes(config, dtype, kept_width) - rows * config.hidden_size * width


READ_AT_ONCE = 2048
"""Tokens of a causal context that go through the network together: what is held besides the cache
does not grow with longer ones, and matrix products are not faster."""
ROWS_AT_ONCE = 1024
"""Rows of a weight that are quantized, or made floats again, together: intermediate results are
several times as large."""
MASK_COPIES = 3
"""Float32 matrices (tokens, keys) that one forward pass holds: the mask, padded, and clamped."""


def prefill_bytes(config: ModelConfig, num_tokens: int, num_keys: int, width: int) -> int:
    """Intermediate results while a prompt is read: those of the widest moment of one block.

    That is the MLP: its input, the residual and the inner tensors; and the mask over all keys.

    Args:
        config: the architecture.
        num_tokens: read at once.
        num_keys: attended to, cached ones included.
        width: bytes of a number.
    """
    inner = (3 + config.is_gated) * config.intermediate_size
    per_token = (3 * config.hidden_size + inner) * width
    return num_tokens * (per_token + MASK_COPIES * 4 * num_keys)


def saved_bytes(config: ModelConfig, num_tokens: int, width: int = 4) -> int:
    """What the forward pass of one layer's block keeps for the backward pass, without dropout.

    Per token: queries, keys, values, what attention gives and what each norm takes and gives, the
    inner tensors of the MLP, and the statistics of norms and softmax. RMSNorm keeps a normalised
    copy besides, and norms are computed in float32.

    Args:
        config: the architecture.
        num_tokens: of a batch.
        width: bytes of a number outside the norms: 4, or 2 under autocast.
    """
    c, kv = config.hidden_size, config.kv_heads * config.head_dim
    is_rms = config.norm == "rmsnorm"
    num_norms = 4 if config.residual == "sandwich" else 2
    in_norms = num_norms * (1 + is_rms) * c
    statistics = num_norms * (1 if is_rms else 2) + config.num_attention_heads
    inner = (4 if config.is_gated else 2) * config.intermediate_size
    return num_tokens * (4 * (in_norms + statistics) + width * (4 * c + 2 * kv + inner))
