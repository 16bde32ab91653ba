"""ChatGLM-6B: names, shapes and configuration of the official files.

`query_key_value` is interleaved by head: [q; k; v] of head 0, then of head 1, ... The files hold
`lm_head` and `word_embeddings`; without `tie_word_embeddings` in `config.json` the official code
ties them at load, and only the embedding counts.
"""

from __future__ import annotations

import math

from openglm.checkpoints.maps.family import Family, Json, flag, require
from openglm.checkpoints.maps.table import Row, pair
from openglm.config import ModelConfig

_LAYER = "transformer.layers.{i}."
_OURS = "layers.{i}."
RESIDUAL_SCALE = math.sqrt(2 * 28)
"""The official block takes its number of layers from a default, 28, whatever the depth."""


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network."""
    tied = Row("lm_head.weight", optional=True, repeats="word_embeddings.weight")
    return (
        Row("transformer.word_embeddings.weight", ("word_embeddings.weight",), split=0),
        tied if config.tie_word_embeddings else Row("lm_head.weight", ("lm_head.weight",)),
        *block_rows(config),
        *pair(_LAYER + "mlp.dense_h_to_4h", _OURS + "mlp.up_proj", split=0),
    )


def block_rows(config: ModelConfig) -> tuple[Row, ...]:
    """What ChatGLM-6B shares with GLM-130B: all but the embeddings and the MLP's first half."""
    return (
        Row(_LAYER + "attention.rotary_emb.inv_freq", optional=True),
        *(
            Row(
                f"{_LAYER}attention.query_key_value.{leaf}",
                tuple(f"{_OURS}attention.{x}_proj.{leaf}" for x in "qkv"),
                split=0,
                group=config.head_dim,
            )
            for leaf in ("weight", "bias")
        ),
        *pair(_LAYER + "attention.dense", _OURS + "attention.o_proj", split=1),
        *pair(_LAYER + "input_layernorm", _OURS + "input_norm"),
        *pair(_LAYER + "post_attention_layernorm", _OURS + "post_attention_norm"),
        *pair(_LAYER + "mlp.dense_4h_to_h", _OURS + "mlp.down_proj", split=1),
        *pair("transformer.final_layernorm", "final_norm"),
    )


KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "inner_hidden_size": "intermediate_size",
    "layernorm_epsilon": "norm_eps",
}
"""config.json key -> ours."""
TOKEN_KEYS = {
    "mask_token_id": "mask",
    "gmask_token_id": "gmask",
    "bos_token_id": "sop",
    "eos_token_id": "eop",
    "pad_token_id": "pad",
}
DEFAULT_TOKENS = {"mask": 150000, "gmask": 150001, "sop": 150004, "eop": 150005, "pad": 0}
"""What the official code takes when `config.json` is silent: the ids of the first revision."""


def config_from_json(values: Json) -> ModelConfig:
    """Reads an official `config.json`; a missing key is a `CheckpointError`.

    The inverse rotary frequencies are rounded to fp16 whatever the dtype; the angles are computed
    in the dtype of the model, as released fp16.
    """
    require(values, [*KEYS])
    has_blocks = flag(values, "position_encoding_2d", True)
    return ModelConfig(
        **{ours: values[key] for key, ours in KEYS.items()},
        position="rotary_2d" if has_blocks else "rotary",
        rotary_compute=values.get("torch_dtype", "float32"),
        rotary_frequencies="float16",
        context="until_sop",
        residual="deepnorm",
        residual_scale=RESIDUAL_SCALE,
        tie_word_embeddings=values.get("tie_word_embeddings", True),
        embedding_dropout=0.0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )


def config_to_json(config: ModelConfig) -> Json:
    """The official `config.json` of a network."""
    values = config.to_dict()
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        **{key: values[ours] for key, ours in KEYS.items()},
        "position_encoding_2d": config.position == "rotary_2d",
        "tie_word_embeddings": config.tie_word_embeddings,
        "torch_dtype": config.rotary_compute,
        "use_cache": True,
    }


def _recognises(values: Json) -> bool:
    return values.get("model_type") == "chatglm" and "padded_vocab_size" not in values


def _fits(config: ModelConfig) -> bool:
    return config.residual == "deepnorm" and config.activation == "gelu_tanh"


FAMILY = Family(
    name="ChatGLM-6B",
    rows=rows,
    fits=_fits,
    recognises=_recognises,
    from_json=config_from_json,
    to_json=config_to_json,
    has_quantized_files=True,
    token_keys=TOKEN_KEYS,
    default_tokens=lambda description: DEFAULT_TOKENS,
)
