"""CodeGeeX-13B: names and shapes of the official files, whole or split over ranks.

The file nests dictionaries: language_model -> embedding, topQueryEmbedding, transformer. Levels
that some releases lack or repeat are ignored, as the official loader does.
"""

from __future__ import annotations

import re

from torch import Tensor

from openglm.checkpoints.maps.family import (
    Family,
    Json,
    Shapes,
    num_heads,
    num_layers,
    require,
)
from openglm.checkpoints.maps.table import Row, pair
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

_LEVELS = re.compile(r"^(?:language_model\.|embedding\.|topQueryEmbedding\.|transformer\.)+")
_WORDS = "word_embeddings.weight"
_POSITIONS = "position_embeddings.weight"
_QUERIES = "top_query_embeddings.weight"


def _block(source: str, target: str) -> tuple[Row, ...]:
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    return (
        *pair(source + "input_layernorm", target + "input_norm"),
        *(
            row
            for theirs, ours in names.items()
            for row in pair(f"{source}attention.{theirs}", f"{target}attention.{ours}", split=0)
        ),
        *pair(source + "attention.dense", target + "attention.o_proj", split=1),
        *pair(source + "post_attention_layernorm", target + "post_attention_norm"),
        *pair(source + "mlp.dense_h_to_4h", target + "mlp.up_proj", split=0),
        *pair(source + "mlp.dense_4h_to_h", target + "mlp.down_proj", split=1),
    )


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network; the table of top queries is cut along the positions."""
    return (
        Row(_WORDS, ("word_embeddings.weight",), split=0),
        Row(_POSITIONS, ("positions.position.weight",)),
        Row(_QUERIES, ("top_queries.weight",), split=0),
        *_block("layers.{i}.", "layers.{i}."),
        *_block("topQueryLayer.", "top_layer."),
        *pair("final_layernorm", "final_norm"),
    )


def canonical(name: str) -> str:
    """The name without the levels above the tensor's own."""
    return _LEVELS.sub("", name)


def nest(tensors: dict[str, Tensor]) -> Json:
    """The dictionaries of an official file: embeddings by module, the transformer flat."""
    levels = {_WORDS: "embedding", _POSITIONS: "embedding", _QUERIES: "topQueryEmbedding"}
    model: Json = {"embedding": {}, "topQueryEmbedding": {}, "transformer": {}}
    for name, tensor in tensors.items():
        if name in levels:
            module, leaf = name.split(".")
            model[levels[name]][module] = {leaf: tensor}
        else:
            model["transformer"][name] = tensor
    return {"language_model": model}


KEYS = {
    "padded_vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_layers",
    "num_attention_heads": "num_attention_heads",
    "max_position_embeddings": "max_position_embeddings",
}


def _config(sizes: Json, inner: int) -> ModelConfig:
    return ModelConfig(
        **sizes,
        intermediate_size=inner,
        position="learned",
        activation="gelu_sigmoid",
        top_query=True,
        embedding_dropout=0.0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )


def config_from_json(values: Json) -> ModelConfig:
    """Reads a description with the keys of the official code."""
    require(values, [*KEYS])
    sizes = {ours: values[key] for key, ours in KEYS.items()}
    hidden = sizes["hidden_size"]
    return _config(sizes, 4 * hidden if type(hidden) is int else hidden)


def config_to_json(config: ModelConfig) -> Json:
    """The description beside the weights; the official files have none."""
    values = config.to_dict()
    return {key: values[ours] for key, ours in KEYS.items()}


def config_from_shapes(shapes: Shapes, num_ranks: int, description: Json) -> ModelConfig:
    """Reads a network off the shapes on rank 0; see `Family.from_shapes`."""
    try:
        vocabulary, hidden = shapes[_WORDS]
        positions = shapes[_POSITIONS][0]
        inner = shapes["layers.0.mlp.dense_h_to_4h.weight"][0] * num_ranks
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"this is no CodeGeeX checkpoint: {error} is missing or misshapen"
        ) from error
    found: Json = {
        "vocab_size": vocabulary * num_ranks,
        "hidden_size": hidden,
        "num_layers": num_layers(shapes, "layers."),
        "max_position_embeddings": positions,
    }
    heads = num_heads(found, description, "CodeGeeX")
    return _config(found | {"num_attention_heads": heads}, inner)


def _recognises(values: Json) -> bool:
    return "model_type" not in values and "padded_vocab_size" in values


def _fits(config: ModelConfig) -> bool:
    return config.top_query


FAMILY = Family(
    name="CodeGeeX",
    rows=rows,
    rank_layouts=("megatron",),
    marker=_QUERIES,
    fits=_fits,
    canonical=canonical,
    nest=nest,
    recognises=_recognises,
    from_json=config_from_json,
    to_json=config_to_json,
    from_shapes=config_from_shapes,
)
