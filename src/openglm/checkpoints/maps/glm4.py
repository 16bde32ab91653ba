"""GLM-4-9B and GLM-4-0414 in the layout of `transformers` (model types `glm` and `glm4`).

Query, key and value projections are apart, `gate_up_proj` holds [gate; up]. GLM-4-0414 has two
more norms in each layer.
"""

from __future__ import annotations

from openglm.checkpoints.maps.chatglm2 import TOKEN_KEYS
from openglm.checkpoints.maps.family import Family, Json, number, refuse, require, size
from openglm.checkpoints.maps.table import Row
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

_LAYER = "model.layers.{i}."
_OURS = "layers.{i}."
RESIDUALS = {"glm": "pre", "glm4": "sandwich"}
"""model_type -> where a layer has its norms."""
ARCHITECTURES = {"glm": "GlmForCausalLM", "glm4": "Glm4ForCausalLM"}


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network."""
    sandwich = (
        Row(_LAYER + "post_self_attn_layernorm.weight", (_OURS + "attention_output_norm.weight",)),
        Row(_LAYER + "post_mlp_layernorm.weight", (_OURS + "mlp_output_norm.weight",)),
    )
    head = Row("lm_head.weight", ("lm_head.weight",))
    tied = Row("lm_head.weight", optional=True, repeats="word_embeddings.weight")
    return (
        Row("model.embed_tokens.weight", ("word_embeddings.weight",)),
        tied if config.tie_word_embeddings else head,
        Row("model.norm.weight", ("final_norm.weight",)),
        Row(_LAYER + "input_layernorm.weight", (_OURS + "input_norm.weight",)),
        Row(_LAYER + "post_attention_layernorm.weight", (_OURS + "post_attention_norm.weight",)),
        *(sandwich if config.residual == "sandwich" else ()),
        *(
            Row(f"{_LAYER}self_attn.{x}_proj.{leaf}", (f"{_OURS}attention.{x}_proj.{leaf}",))
            for x in "qkv"
            for leaf in (("weight", "bias") if config.qkv_bias else ("weight",))
        ),
        Row(_LAYER + "self_attn.o_proj.weight", (_OURS + "attention.o_proj.weight",)),
        Row(
            _LAYER + "mlp.gate_up_proj.weight",
            (_OURS + "mlp.gate_proj.weight", _OURS + "mlp.up_proj.weight"),
        ),
        Row(_LAYER + "mlp.down_proj.weight", (_OURS + "mlp.down_proj.weight",)),
    )


KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "max_position_embeddings": "max_position_embeddings",
    "intermediate_size": "intermediate_size",
    "rms_norm_eps": "norm_eps",
    "attention_bias": "qkv_bias",
}
"""config.json key -> ours."""


def config_from_json(values: Json) -> ModelConfig:
    """Reads a `config.json` of transformers 4 (`rope_theta` at the top) or 5 (`rope_parameters`).

    Raises:
        CheckpointError: a key is missing, or has a value that no released model has.
    """
    require(values, [*KEYS])
    rope = values.get("rope_parameters")
    rope = rope if isinstance(rope, dict) else values
    require(rope, ["rope_theta"])
    if rope.get("rope_type", "default") != "default" or values.get("rope_scaling"):
        raise CheckpointError(
            "config.json asks for scaled rotary positions (rope_type, rope_scaling), "
            "which no released GLM-4 has"
        )
    head_dim = size(values, "hidden_size") // size(values, "num_attention_heads")
    refuse(values, {"hidden_act": "silu", "head_dim": head_dim})
    return ModelConfig(
        **{ours: values[key] for key, ours in KEYS.items()},
        position="rotary",
        rotary_dim=int(head_dim * number(rope, "partial_rotary_factor", 0.5)),
        rotary_pairing="interleaved",
        rope_theta=number(rope, "rope_theta", 0.0),
        norm="rmsnorm",
        residual=RESIDUALS[values["model_type"]],  # type: ignore[arg-type]
        activation="swiglu",
        linear_bias=False,
        tie_word_embeddings=values.get("tie_word_embeddings", False),
        attention_dropout=values.get("attention_dropout", 0.0),
        hidden_dropout=0.0,
        embedding_dropout=0.0,
        initializer_range=values.get("initializer_range", 0.02),
    )


def config_to_json(config: ModelConfig) -> Json:
    """The `config.json` of a network, readable by transformers 4.46 and later, and by vLLM."""
    values = config.to_dict() | {"num_key_value_heads": config.kv_heads}
    model_type = next(name for name, kind in RESIDUALS.items() if kind == config.residual)
    partial = config.rotary_width / config.head_dim
    return {
        "architectures": [ARCHITECTURES[model_type]],
        "model_type": model_type,
        **{key: values[ours] for key, ours in KEYS.items()},
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "partial_rotary_factor": partial,
        "rope_theta": config.rope_theta,
        "rope_parameters": {
            "partial_rotary_factor": partial,
            "rope_theta": config.rope_theta,
            "rope_type": "default",
        },
        "attention_dropout": config.attention_dropout,
        "initializer_range": config.initializer_range,
        "tie_word_embeddings": config.tie_word_embeddings,
        "use_cache": True,
    }


def _recognises(values: Json) -> bool:
    return values.get("model_type") in RESIDUALS and "num_hidden_layers" in values


def _fits(config: ModelConfig) -> bool:
    return config.activation == "swiglu" and config.residual in RESIDUALS.values()


FAMILY = Family(
    name="GLM-4",
    rows=rows,
    fits=_fits,
    recognises=_recognises,
    from_json=config_from_json,
    to_json=config_to_json,
    token_keys=TOKEN_KEYS,
)
