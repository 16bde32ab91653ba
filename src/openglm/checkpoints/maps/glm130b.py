"""GLM-130B: names and shapes of the official SwissArmyTransformer files, any number of ranks.

`query_key_value` is interleaved by head; `dense_h_to_4h` holds [up; gate] on every rank.
"""

from __future__ import annotations

import math

from openglm.checkpoints.maps.chatglm import block_rows
from openglm.checkpoints.maps.family import Family, Json, Shapes, num_heads, num_layers
from openglm.checkpoints.maps.table import Row
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

_MLP = "layers.{i}.mlp."
OFFICIAL_VOCABULARY = 150528
MAX_SEQUENCE_LENGTH = 2048
TOKENS = {"mask": 150000, "gmask": 150001, "smask": 150002, "sop": 150004, "eop": 150005}
"""Of the icetk tokenizer."""
TOKEN_NAMES = {
    "[MASK]": "mask",
    "[gMASK]": "gmask",
    "[sMASK]": "smask",
    "sop": "sop",
    "eop": "eop",
    "eos": "eos",
}


def rows(config: ModelConfig) -> tuple[Row, ...]:
    """The table for one network."""
    return (
        Row("transformer.word_embeddings.weight", ("word_embeddings.weight",), split=0),
        Row("mixins.rotary-embedding.rotary_emb.inv_freq", optional=True),
        *block_rows(config),
        *(
            Row(
                f"transformer.layers.{{i}}.mlp.dense_h_to_4h.{leaf}",
                (f"{_MLP}up_proj.{leaf}", f"{_MLP}gate_proj.{leaf}"),
                split=0,
            )
            for leaf in ("weight", "bias")
        ),
    )


def config_from_shapes(shapes: Shapes, num_ranks: int, description: Json) -> ModelConfig:
    """Reads a network off the shapes on rank 0; see `Family.from_shapes`.

    The angles of the rotary positions are computed in fp16, as in the released code
    (SwissArmyTransformer 0.2.12).
    """
    try:
        vocabulary, hidden = shapes["transformer.word_embeddings.weight"]
        inner = shapes["transformer.layers.0.mlp.dense_4h_to_h.weight"][1] * num_ranks
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(
            f"this is no GLM-130B checkpoint: {error} is missing or misshapen"
        ) from error
    found: Json = {
        "vocab_size": vocabulary * num_ranks,
        "hidden_size": hidden,
        "num_layers": num_layers(shapes, "transformer.layers."),
        "intermediate_size": inner,
    }
    return ModelConfig(
        **found,
        num_attention_heads=num_heads(found, description, "GLM-130B"),
        max_position_embeddings=description.get("max_sequence_length", MAX_SEQUENCE_LENGTH),
        position="rotary",
        rotary_compute="float16",
        rotary_frequencies="float16",
        context="until_sop",
        residual="deepnorm",
        residual_scale=math.sqrt(2 * found["num_layers"]),
        activation="geglu",
        embedding_dropout=0.0,
        attention_dropout=0.0,
        hidden_dropout=0.0,
    )


def config_to_json(config: ModelConfig) -> Json:
    """The `model_config.json` that SwissArmyTransformer writes beside the weights."""
    return {
        "model_class": "GLM130B",
        "tokenizer_type": "icetk-glm-130B",
        "layernorm_order": "post",
        "num_layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "inner_hidden_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "max_sequence_length": config.max_position_embeddings,
    }


def default_tokens(description: Json) -> dict[str, int]:
    """The official ids, for a network of the official vocabulary."""
    is_official = description.get("vocab_size", OFFICIAL_VOCABULARY) == OFFICIAL_VOCABULARY
    return TOKENS if is_official else {}


def _fits(config: ModelConfig) -> bool:
    return config.residual == "deepnorm" and config.activation == "geglu"


FAMILY = Family(
    name="GLM-130B",
    rows=rows,
    rank_layouts=("sat", "megatron"),
    marker="transformer.word_embeddings.weight",
    fits=_fits,
    to_json=config_to_json,
    description_file="model_config.json",
    from_shapes=config_from_shapes,
    token_keys=TOKEN_NAMES,
    default_tokens=default_tokens,
    ids_below="special_token_ids",
)
