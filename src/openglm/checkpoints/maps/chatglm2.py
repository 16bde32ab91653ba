"""ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B in the layout of their own code.

`query_key_value` holds [all queries; the shared keys; the shared values], `dense_h_to_4h`
[gate; up]. ChatGLM2 and ChatGLM3 differ only in the precision of the rotary angles.
"""

from __future__ import annotations

from openglm.checkpoints.maps.family import Family, Json, flag, number, refuse, require, size
from openglm.checkpoints.maps.table import Row
from openglm.config import ModelConfig
from openglm.log import logger

_LAYER = "transformer.encoder.layers.{i}."
_OURS = "layers.{i}."


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network; biases and norm shifts only where it has them."""
    norm_leaves = ("weight", "bias") if config.norm == "layernorm" else ("weight",)
    linear_leaves = ("weight", "bias") if config.linear_bias else ("weight",)
    attention, mlp = _OURS + "attention.", _OURS + "mlp."
    linears = (
        (_LAYER + "self_attention.dense", (attention + "o_proj",)),
        (_LAYER + "mlp.dense_h_to_4h", (mlp + "gate_proj", mlp + "up_proj")),
        (_LAYER + "mlp.dense_4h_to_h", (mlp + "down_proj",)),
    )
    norms = (
        (_LAYER + "input_layernorm", _OURS + "input_norm"),
        (_LAYER + "post_attention_layernorm", _OURS + "post_attention_norm"),
        ("transformer.encoder.final_layernorm", "final_norm"),
    )
    return (
        Row("transformer.embedding.word_embeddings.weight", ("word_embeddings.weight",)),
        Row("transformer.output_layer.weight", ("lm_head.weight",)),
        Row("transformer.rotary_pos_emb.inv_freq", optional=True),
        *(
            Row(
                f"{_LAYER}self_attention.query_key_value.{leaf}",
                tuple(f"{attention}{x}_proj.{leaf}" for x in "qkv"),
            )
            for leaf in (("weight", "bias") if config.qkv_bias else ("weight",))
        ),
        *(
            Row(f"{source}.{leaf}", tuple(f"{target}.{leaf}" for target in targets))
            for source, targets in linears
            for leaf in linear_leaves
        ),
        *(
            Row(f"{source}.{leaf}", (f"{target}.{leaf}",))
            for source, target in norms
            for leaf in norm_leaves
        ),
    )


BASE = 10000.0
KEYS = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "seq_length": "max_position_embeddings",
    "ffn_hidden_size": "intermediate_size",
    "layernorm_epsilon": "norm_eps",
    "hidden_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}
"""config.json key -> ours."""
FIXED: Json = {
    "apply_residual_connection_post_layernorm": False,
    "post_layer_norm": True,
    "original_rope": True,
    "multi_query_attention": True,
    "tie_word_embeddings": False,
}
"""Switches of the official code that every released model sets alike."""


def config_from_json(values: Json) -> ModelConfig:
    """Reads an official `config.json`.

    ChatGLM2 computes positions and angles in the dtype of the model; ChatGLM3, and every model
    with a `rope_ratio`, in float32. ChatGLM3 files are told by their key `classifier_dropout`.

    Raises:
        CheckpointError: a key is missing, or has a value that no released model has.
    """
    require(values, [*[*KEYS][:7], "multi_query_group_num"])
    refuse(values, FIXED)
    head_dim = size(values, "hidden_size") // size(values, "num_attention_heads")
    refuse(values, {"kv_channels": head_dim})
    ours: Json = {"hidden_dropout": 0.0, "attention_dropout": 0.0}
    ours |= {name: values[key] for key, name in KEYS.items() if key in values}
    is_exact = "classifier_dropout" in values or "rope_ratio" in values
    if "rope_ratio" in values and "classifier_dropout" not in values:
        logger.warning(
            "rope_ratio is read as ChatGLM3 and GLM-4 mean it, a factor of the base; "
            "ChatGLM2-6B-32K, which divides positions by it, is not supported"
        )
    return ModelConfig(
        **ours,
        num_key_value_heads=values["multi_query_group_num"],
        position="rotary",
        rotary_dim=head_dim // 2,
        rotary_pairing="interleaved",
        rotary_compute="float32" if is_exact else values.get("torch_dtype", "float32"),
        rotary_frequencies="float32" if is_exact else "as_compute",
        rope_theta=BASE * number(values, "rope_ratio", 1.0),
        norm="rmsnorm" if flag(values, "rmsnorm", True) else "layernorm",
        activation="swiglu",
        qkv_bias=values.get("add_qkv_bias", False),
        linear_bias=values.get("add_bias_linear", False),
        tie_word_embeddings=False,
        embedding_dropout=0.0,
    )


def config_to_json(config: ModelConfig) -> Json:
    """The official `config.json` of a network."""
    values = config.to_dict()
    exact: Json = {"classifier_dropout": None, "rope_ratio": config.rope_theta / BASE}
    released: Json = {"torch_dtype": config.rotary_compute}
    return {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        **{key: values[ours] for key, ours in KEYS.items()},
        **FIXED,
        "kv_channels": config.head_dim,
        "multi_query_group_num": config.kv_heads,
        "rmsnorm": config.norm == "rmsnorm",
        "add_qkv_bias": config.qkv_bias,
        "add_bias_linear": config.linear_bias,
        "apply_query_key_layer_scaling": True,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "fp32_residual_connection": False,
        "use_cache": True,
        **(exact if config.rotary_frequencies == "float32" else released),
    }


TOKEN_KEYS = {"eos_token_id": "eos", "pad_token_id": "pad"}
"""End and padding; the rest belongs to the tokenizer."""


def _recognises(values: Json) -> bool:
    return values.get("model_type") == "chatglm" and "padded_vocab_size" in values


def _fits(config: ModelConfig) -> bool:
    return config.activation == "swiglu" and config.residual == "pre"


FAMILY = Family(
    name="ChatGLM2",
    rows=rows,
    fits=_fits,
    recognises=_recognises,
    from_json=config_from_json,
    to_json=config_to_json,
    has_quantized_files=True,
    token_keys=TOKEN_KEYS,
)
