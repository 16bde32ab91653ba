"""GLM (110M to 10B): names, shapes and configuration of the official files.

Hugging Face and Megatron files hold the same tensors under the same names; Hugging Face ones may
have the prefix `glm.`. Fused query-key-value rows are [all queries; all keys; all values], also
inside a tensor-parallel rank.
"""

from __future__ import annotations

import re
from typing import Any

from openglm.checkpoints.maps.table import NameMap, Row
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

PREFIX = "glm."
_LAYER = "transformer.layers.{i}."
_OURS = "layers.{i}."


def _norm(source: str, target: str) -> tuple[Row, ...]:
    return tuple(Row(f"{source}.{p}", (f"{target}.{p}",)) for p in ("weight", "bias"))


ROWS: tuple[Row, ...] = (
    Row("word_embeddings.weight", ("word_embeddings.weight",), split=0),
    Row("transformer.position_embeddings.weight", ("positions.position.weight",)),
    Row("transformer.block_position_embeddings.weight", ("positions.block_position.weight",)),
    *_norm(_LAYER + "input_layernorm", _OURS + "input_norm"),
    *(
        Row(
            f"{_LAYER}attention.query_key_value.{p}",
            tuple(f"{_OURS}attention.{x}_proj.{p}" for x in "qkv"),
            split=0,
        )
        for p in ("weight", "bias")
    ),
    Row(_LAYER + "attention.dense.weight", (_OURS + "attention.o_proj.weight",), split=1),
    Row(_LAYER + "attention.dense.bias", (_OURS + "attention.o_proj.bias",)),
    *_norm(_LAYER + "post_attention_layernorm", _OURS + "post_attention_norm"),
    Row(_LAYER + "mlp.dense_h_to_4h.weight", (_OURS + "mlp.up_proj.weight",), split=0),
    Row(_LAYER + "mlp.dense_h_to_4h.bias", (_OURS + "mlp.up_proj.bias",), split=0),
    Row(_LAYER + "mlp.dense_4h_to_h.weight", (_OURS + "mlp.down_proj.weight",), split=1),
    Row(_LAYER + "mlp.dense_4h_to_h.bias", (_OURS + "mlp.down_proj.bias",)),
    *_norm("transformer.final_layernorm", "final_norm"),
)


def name_map(config: ModelConfig) -> NameMap:
    """The table for one network: without block positions there is one position table less."""
    has_blocks = config.position == "learned_2d"
    return NameMap(tuple(r for r in ROWS if has_blocks or "block_position" not in r.source))


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


def config_from_hf(values: dict[str, Any]) -> ModelConfig:
    """Reads an official `config.json`.

    The Hugging Face code computes the exact (erf) GELU; `activation` in the file, which only
    `config_to_hf` writes, says otherwise for weights converted from Megatron files.

    Raises:
        CheckpointError: not a GLM configuration, or a feature that no released model has.
    """
    if values.get("model_type") not in (None, "glm"):
        raise CheckpointError(
            f"config.json has model_type={values['model_type']!r}; GLM files have 'glm'"
        )
    missing = [key for key in HF_REQUIRED if key not in values]
    if missing:
        raise CheckpointError(f"config.json lacks {', '.join(missing)}")
    if values.get("relative_encoding"):
        raise CheckpointError("config.json has relative_encoding=true, which no released GLM uses")
    if values.get("spell_length"):
        raise CheckpointError("config.json has spell_length set (P-tuning), which is not supported")
    known = {ours: values[key] for key, ours in HF_KEYS.items() if key in values}
    hidden = values["hidden_size"]
    return ModelConfig(
        **known,
        intermediate_size=4 * hidden if type(hidden) is int else hidden,  # fixed officially
        position="learned_2d" if values.get("block_position_encoding", True) else "learned",
        activation=values.get("activation", "gelu_erf"),
    )


def config_to_hf(config: ModelConfig) -> dict[str, Any]:
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


def config_from_shapes(
    shapes: dict[str, tuple[int, ...]], num_ranks: int, sidecar: dict[str, Any]
) -> ModelConfig:
    """Reads a network off the shapes of a Megatron checkpoint.

    The shapes do not tell the number of attention heads. It comes from a description beside the
    checkpoint, or from the published model that has these very shapes.

    Args:
        shapes: name -> shape on rank 0.
        num_ranks: tensor-parallel degree.
        sidecar: description beside the checkpoint, {} if there is none.
    """
    try:
        rows, hidden = shapes["word_embeddings.weight"]
        inner = shapes["transformer.layers.0.mlp.dense_h_to_4h.weight"][0] * num_ranks
        positions = shapes["transformer.position_embeddings.weight"][0]
    except (KeyError, ValueError) as error:
        raise CheckpointError(
            f"this is no GLM checkpoint: {error} is missing or misshapen"
        ) from error
    rest = {
        HF_KEYS[key]: sidecar[key]
        for key in (
            "embedding_dropout_prob",
            "attention_dropout_prob",
            "output_dropout_prob",
            "initializer_range",
            "layernorm_epsilon",
        )
        if key in sidecar
    }
    numbers = [re.match(r"transformer\.layers\.(\d+)\.", name) for name in shapes]
    has_blocks = "transformer.block_position_embeddings.weight" in shapes
    found = {
        "vocab_size": rows * num_ranks,
        "hidden_size": hidden,
        "num_layers": 1 + max(int(match.group(1)) for match in numbers if match),
        "intermediate_size": inner,
        "max_position_embeddings": positions - has_blocks,
    }
    return ModelConfig(
        **found,
        num_attention_heads=_num_heads(found, sidecar),
        position="learned_2d" if has_blocks else "learned",
        activation=sidecar.get("activation", "gelu_tanh"),
        **rest,
    )


def _num_heads(found: dict[str, int], sidecar: dict[str, Any]) -> int:
    from openglm.registry import presets

    if "num_attention_heads" in sidecar:
        for key in ("vocab_size", "hidden_size", "num_layers"):
            if key in sidecar and sidecar[key] != found[key]:
                raise CheckpointError(
                    f"the description beside the checkpoint has {key}={sidecar[key]}, "
                    f"the weights have {found[key]}"
                )
        heads: int = sidecar["num_attention_heads"]
        return heads
    for preset in presets().values():
        values = preset.model.to_dict()
        if all(values[key] == value for key, value in found.items()):
            return preset.model.num_attention_heads
    raise CheckpointError(
        f"a Megatron checkpoint does not say how many attention heads it has, and no published "
        f"model has hidden_size={found['hidden_size']} with num_layers={found['num_layers']}",
        hint='put a config.json with {"num_attention_heads": N} beside it',
    )
