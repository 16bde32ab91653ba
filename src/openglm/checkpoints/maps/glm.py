"""GLM (110M to 10B): names, shapes and configuration of the official files.

Hugging Face and Megatron files hold the same tensors under the same names; Hugging Face ones may
have the prefix `glm.`. Fused query-key-value rows are [all queries; all keys; all values], also
inside a tensor-parallel rank.
"""

from __future__ import annotations

from openglm.checkpoints.maps.family import (
    Family,
    Json,
    Shapes,
    flag,
    num_heads,
    num_layers,
    refuse,
    require,
)
from openglm.checkpoints.maps.table import Row, pair
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

PREFIX = "glm."
_LAYER = "transformer.layers.{i}."
_OURS = "layers.{i}."

BLOCK_TABLE = "transformer.block_position_embeddings.weight"
ROWS: tuple[Row, ...] = (
    Row("word_embeddings.weight", ("word_embeddings.weight",), split=0),
    Row("transformer.position_embeddings.weight", ("positions.position.weight",)),
    Row(BLOCK_TABLE, ("positions.block_position.weight",)),
    *pair(_LAYER + "input_layernorm", _OURS + "input_norm"),
    *(
        Row(
            f"{_LAYER}attention.query_key_value.{p}",
            tuple(f"{_OURS}attention.{x}_proj.{p}" for x in "qkv"),
            split=0,
        )
        for p in ("weight", "bias")
    ),
    *pair(_LAYER + "attention.dense", _OURS + "attention.o_proj", split=1),
    *pair(_LAYER + "post_attention_layernorm", _OURS + "post_attention_norm"),
    *pair(_LAYER + "mlp.dense_h_to_4h", _OURS + "mlp.up_proj", split=0),
    *pair(_LAYER + "mlp.dense_4h_to_h", _OURS + "mlp.down_proj", split=1),
    *pair("transformer.final_layernorm", "final_norm"),
)


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network: without block positions there is one position table less."""
    has_blocks = config.position == "learned_2d"
    return tuple(r for r in ROWS if has_blocks or r.source != BLOCK_TABLE)


HF_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "max_sequence_length": "max_position_embeddings",
    "embedding_dropout_prob": "embedding_dropout",
    "attention_dropout_prob": "attention_dropout",
    "output_dropout_prob": "hidden_dropout",
    "initializer_range": "initializer_range",
    "layernorm_epsilon": "norm_eps",
}
"""config.json key -> ours."""
HF_REQUIRED = list(HF_KEYS)[:5]


def config_from_hf(values: Json) -> ModelConfig:
    """Reads an official `config.json`.

    The Hugging Face code computes the exact (erf) GELU; `activation` in the file, which only
    `config_to_hf` writes, says otherwise for weights converted from Megatron files.

    Raises:
        CheckpointError: not a GLM configuration, or a feature that no released model has.
    """
    require(values, HF_REQUIRED)
    refuse(values, {"relative_encoding": False, "spell_length": None})
    known = {ours: values[key] for key, ours in HF_KEYS.items() if key in values}
    hidden = values["hidden_size"]
    return ModelConfig(
        **known,
        intermediate_size=4 * hidden if type(hidden) is int else hidden,  # fixed officially
        position="learned_2d" if flag(values, "block_position_encoding", True) else "learned",
        activation=values.get("activation", "gelu_erf"),
    )


def config_to_hf(config: ModelConfig) -> Json:
    """The official `config.json` of a network."""
    if config.intermediate_size != 4 * config.hidden_size:
        raise CheckpointError(
            f"intermediate_size={config.intermediate_size} is not 4 * hidden_size, which the "
            "Hugging Face and Megatron code of GLM assume"
        )
    values = config.to_dict()
    return {
        "architectures": ["GLMForConditionalGeneration"],
        "model_type": "glm",
        **{key: values[ours] for key, ours in HF_KEYS.items()},
        "block_position_encoding": config.position == "learned_2d",
        "activation": config.activation,
        "attention_scale": 1.0,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "output_predict": True,
        "parallel_output": True,
        "pool_token": "cls",
        "relative_encoding": False,
        "spell_func": "lstm",
        "spell_length": None,
    }


def config_from_shapes(shapes: Shapes, num_ranks: int, description: Json) -> ModelConfig:
    """Reads a network off the shapes of a Megatron checkpoint.

    The shapes do not tell the number of attention heads; see `num_heads`.

    Args:
        shapes: name -> shape on rank 0.
        num_ranks: tensor-parallel degree.
        description: beside the checkpoint, {} if there is none.
    """
    try:
        vocabulary, hidden = shapes["word_embeddings.weight"]
        inner = shapes["transformer.layers.0.mlp.dense_h_to_4h.weight"][0] * num_ranks
        positions = shapes["transformer.position_embeddings.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"this is no GLM checkpoint: {error} is missing or misshapen"
        ) from error
    rest = {
        HF_KEYS[key]: description[key]
        for key in (
            "embedding_dropout_prob",
            "attention_dropout_prob",
            "output_dropout_prob",
            "initializer_range",
            "layernorm_epsilon",
        )
        if key in description
    }
    has_blocks = BLOCK_TABLE in shapes
    found: Json = {
        "vocab_size": vocabulary * num_ranks,
        "hidden_size": hidden,
        "num_layers": num_layers(shapes, "transformer.layers."),
        "intermediate_size": inner,
        "max_position_embeddings": positions - has_blocks,
    }
    return ModelConfig(
        **found,
        num_attention_heads=num_heads(found, description, "Megatron"),
        position="learned_2d" if has_blocks else "learned",
        activation=description.get("activation", "gelu_tanh"),
        **rest,
    )


def _fits(config: ModelConfig) -> bool:
    return (
        not config.is_rotary
        and (config.norm, config.residual) == ("layernorm", "pre")
        and config.activation in ("gelu_tanh", "gelu_erf")
        and not config.top_query
    )


def _recognises(values: Json) -> bool:
    others = {"num_hidden_layers", "padded_vocab_size"}  # GLM-4, CodeGeeX
    return values.get("model_type") in (None, "glm") and not others & set(values)


def _canonical(name: str) -> str:
    return name.removeprefix(PREFIX)


FAMILY = Family(
    name="GLM",
    rows=rows,
    rank_layouts=("megatron",),
    marker="transformer.position_embeddings.weight",
    fits=_fits,
    canonical=_canonical,
    recognises=_recognises,
    from_json=config_from_hf,
    to_json=config_to_hf,
    from_shapes=config_from_shapes,
)
