"""How many bytes a model takes, by arithmetic on its shapes. No torch.

Official INT8 and INT4 keep embeddings, norms, biases and head in 16 bits, and have one fp16 scale
per row of a quantized weight: a ChatGLM2-6B in INT4 has 3.92 GB, not half a byte per parameter.
Groups have a scale each, and weights are filled up to whole groups and blocks of rows.
"""

from __future__ import annotations

from openglm.config import ModelConfig
from openglm.errors import UsageError, suggest
from openglm.scheme import EXAMPLES, Scheme, find_scheme

WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""
KV_DTYPES = ("auto", *WIDTHS, "int8")
"""Of keys and values; int8 has a float32 scale for each token and head."""
BLOCK_ROWS = 16
"""Rows of packed weights stand in blocks of so many, see `openglm.kernels.packing`: the lanes of 32
bits in the widest vector register (AVX-512)."""
KEPT_WIDTH = 2
"""Bytes of what quantization leaves alone, of a scale, and of cached keys and values."""


def parse_dtype_name(dtype: str) -> Scheme | None:
    """The scheme of quantized weights, None for floats; `UsageError` for an unknown dtype."""
    scheme = find_scheme(dtype)
    if scheme is None and dtype not in WIDTHS:
        raise UsageError(
            f"unknown dtype {dtype!r}", hint=f"one of {', '.join((*WIDTHS, *EXAMPLES))} ..."
        )
    return scheme


def linear_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """(out, in) of the weights of one block that quantization applies to."""
    c, f, d = config.hidden_size, config.intermediate_size, config.head_dim
    kv = config.kv_heads * d
    return [(c, c), (kv, c), (kv, c), (c, c), *[(f, c)] * (1 + config.is_gated), (c, f)]


def quantized_shapes(config: ModelConfig, scheme: Scheme) -> list[tuple[int, int]]:
    """(out, in) of every weight that a scheme applies to."""
    is_tied, vocabulary = config.tie_word_embeddings, (config.vocab_size, config.hidden_size)
    return [
        *linear_shapes(config) * config.num_cached_layers,
        *[vocabulary] * scheme.packs_embedding(is_tied),
        *[vocabulary] * (scheme.head and not is_tied),
    ]


def weight_bytes(config: ModelConfig, dtype: str, kept_width: int = KEPT_WIDTH) -> int:
    """All weights.

    Args:
        config: the architecture.
        dtype: a key of `WIDTHS`, or the name of a `Scheme`.
        kept_width: bytes of a number that quantization leaves alone: 2, or 4 in plain torch on a
            CPU, where weights have the dtype that is computed in.
    """
    scheme = parse_dtype_name(dtype)
    if scheme is None:
        return config.num_parameters * WIDTHS[dtype]
    shapes = quantized_shapes(config, scheme)
    packed = sum(packed_bytes(rows, columns, scheme, kept_width) for rows, columns in shapes)
    kept = config.num_parameters - sum(rows * columns for rows, columns in shapes)
    return packed + kept * kept_width


def packed_bytes(rows: int, columns: int, scheme: Scheme, kept_width: int = KEPT_WIDTH) -> int:
    """One quantized weight with its scales, those of groups being float16 always."""
    if scheme.is_official:
        return rows * columns * scheme.bits // 8 + rows * kept_width
    rows += -rows % BLOCK_ROWS
    columns += -columns % scheme.group_size
    per_group = KEPT_WIDTH if scheme.symmetric else 2 * KEPT_WIDTH
    return rows * columns * scheme.bits // 8 + rows * columns // scheme.group_size * per_group


def cache_bytes(config: ModelConfig, num_tokens: int, width: float = KEPT_WIDTH) -> int:
    """Keys and values of one sequence: 2 * layers * key/value heads * head_dim per token."""
    per_token = 2 * config.num_cached_layers * config.kv_heads * config.head_dim
    return int(per_token * num_tokens * width)


def cache_width(config: ModelConfig, kv_dtype: str, computed: int) -> float:
    """Bytes of a cached number, its share of a scale included.

    Args:
        config: the architecture.
        kv_dtype: one of `KV_DTYPES`.
        computed: bytes of a number that is computed with, which auto is.
    """
    if kv_dtype not in KV_DTYPES:
        raise UsageError(f"unknown kv_dtype {kv_dtype!r}", hint=suggest(kv_dtype, KV_DTYPES))
    if kv_dtype == "int8":
        return 1 + WIDTHS["float32"] / config.head_dim
    return WIDTHS.get(kv_dtype, computed)


def streamed_bytes(config: ModelConfig, dtype: str, kept_width: int = KEPT_WIDTH) -> int:
    """Weights that each new token reads: all but tables in which only a row is looked up."""
    num_tables = {"learned_2d": 2, "learned": 1}.get(config.position, 0) + config.top_query
    rows = num_tables * config.position_rows
    scheme, looked_up = parse_dtype_name(dtype), 0
    if scheme is not None and scheme.embeddings and not config.tie_word_embeddings:
        looked_up = packed_bytes(config.vocab_size, config.hidden_size, scheme, kept_width)
    elif not config.tie_word_embeddings:
        rows += config.vocab_size
    width = WIDTHS.get(dtype, kept_width)
    return weight_bytes(config, dtype, kept_width) - looked_up - rows * config.hidden_size * width


READ_AT_ONCE = 2048
"""Tokens of a causal context that go through the network together: what is held besides the cache
does not grow with longer ones, and matrix products are not faster."""
READ_AT_ONCE_COMPILED = 512
"""Likewise on the compiled kernels, whose products are at full speed from fewer rows on."""
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
        num_keys: attended to, cached ones included; 0 without a mask.
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
