"""Tiny networks and checkpoint folders shared by the tests of models.

`random_model` has weights of all sizes and no zero biases, so that a swapped or forgotten tensor
changes every logit. `scripted_model` writes a given token list, whatever the context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.language_model import LanguageModel
from openglm.model import Transformer, build
from openglm.nn.masks import MaskSpec
from openglm.tokenizers import Tokenizer

GLM_GOLDENS = Path(__file__).parent / "goldens" / "glm"


NETWORKS = {
    "glm": {},
    "chatglm2": {
        "position": "rotary",
        "activation": "swiglu",
        "norm": "rmsnorm",
        "num_key_value_heads": 2,
        "linear_bias": False,
    },
    "glm130b": {"position": "rotary", "residual": "deepnorm", "activation": "geglu"},
    "glm4-0414": {
        "position": "rotary",
        "activation": "swiglu",
        "norm": "rmsnorm",
        "num_key_value_heads": 2,
        "residual": "sandwich",
    },
}


def tiny_config(**changes: Any) -> ModelConfig:
    """Layers, heads, head width and the sizes made of them all differ; 12 heads split many ways."""
    values: dict[str, Any] = {
        "vocab_size": 60,
        "hidden_size": 24,
        "num_layers": 3,
        "num_attention_heads": 12,
        "max_position_embeddings": 40,
        "intermediate_size": 96,
        "activation": "gelu_erf",
    }
    return ModelConfig(**values | changes)


def random_model(config: ModelConfig, seed: int = 0) -> Transformer:
    """A network in eval mode in which every parameter is random."""
    model = build(config, "cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
            if name.endswith("norm.weight"):
                parameter.add_(1.0)
    return model.eval().requires_grad_(False)


def scripted_model(config: ModelConfig, script: Sequence[int], after: int = 0) -> Transformer:
    """A network whose likeliest tokens in a blank are `script`, then `after` for ever.

    The blocks add nothing, and the block position k points at the embedding of script[k - 1].
    """
    model = random_model(config)
    for layer in model.layers:
        for projection in (layer.attention.o_proj, layer.mlp.down_proj):
            projection.weight.zero_()
            projection.bias.zero_()
    model.final_norm.weight.fill_(1.0)
    model.final_norm.bias.zero_()
    words = model.word_embeddings.weight
    words.div_(words.norm(dim=1, keepdim=True))
    wanted = [*script, *[after] * config.position_rows][: config.position_rows - 1]
    model.positions.block_position.weight[1:] = 20.0 * words[wanted]
    return model


def allowed_matrix(prefix: int, num_queries: int, num_keys: int) -> Tensor:
    """(T, S) bool, spelled out: key s is visible to query t if it is context or not later."""
    first = num_keys - num_queries
    rows = [[s < prefix or s <= first + t for s in range(num_keys)] for t in range(num_queries)]
    return torch.tensor(rows)


def forward(model: Transformer, ids: Tensor, mask: MaskSpec, seed: int = 0) -> Tensor:
    """Logits of a full forward pass at seeded random positions, (B, T, V)."""
    generator = torch.Generator().manual_seed(seed)
    rows = model.config.position_rows
    positions = torch.randint(0, rows, (2, *ids.shape), generator=generator)
    with torch.inference_mode():
        return model.logits(model(ids, positions[0], positions[1], mask))


def context_of(model: LanguageModel, text: str) -> list[int]:
    """Official layout of a context: [CLS] text eos, without eos behind a final [gMASK]."""
    special = model.tokenizer.special
    ids = [special.cls_id, *model.tokenizer.encode(text, special=True)]
    return ids if ids[-1] == special.get("gmask").id else [*ids, special.eos_id]


def full_log_probabilities(
    model: LanguageModel, context: list[int], blanks: list[tuple[int, list[int]]]
) -> Tensor:
    """(T, V) log p of one full pass over the context and `sop tokens` of each blank, no cache."""
    ids, positions, blocks = list(context), list(range(len(context))), [0] * len(context)
    for position, tokens in blanks:
        ids += [model.tokenizer.special.sop_id, *tokens]
        positions += [position] * (len(tokens) + 1)
        blocks += range(1, len(tokens) + 2)
    with torch.inference_mode():
        rows = (torch.tensor([row]) for row in (ids, positions, blocks))
        hidden = model.network(*rows, MaskSpec.prefix(torch.tensor([len(context)])))
        return torch.log_softmax(model.network.logits(hidden)[0].float(), dim=-1)


def mask_positions(model: LanguageModel, context: list[int]) -> list[int]:
    """Indices of the blanks."""
    masks = {token.id for token in model.tokenizer.special.mask_tokens}
    return [index for index, token in enumerate(context) if token in masks]


def write_checkpoint(
    folder: Path,
    layout: str,
    config: ModelConfig | None = None,
    *,
    num_ranks: int = 1,
    tokenizer: Tokenizer | None = None,
    model: Transformer | None = None,
) -> dict[str, Tensor]:
    """Saves a random network as `layout`; returns its weights by our names."""
    config = config or tiny_config()
    weights = (model or random_model(config)).state_dict()
    save_checkpoint(folder, config, weights, layout, tokenizer=tokenizer, num_ranks=num_ranks)
    return weights


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Same names, dtypes and bits."""
    assert sorted(found) == sorted(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def weights_in(folder: Path) -> dict[str, Tensor]:
    """All weights of a checkpoint folder by our names, as stored."""
    return load_checkpoint(folder).model.state_dict()


def refused(folder: Path, *named: str) -> CheckpointError:
    """Loading `folder` fails with a message that has all of `named`, and with a hint."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(folder)
    assert type(caught.value) is CheckpointError
    for text in named:
        assert text in caught.value.message, f"{text!r} is not in: {caught.value.message}"
    assert caught.value.hint, f"no hint: {caught.value.message}"
    return caught.value


def edit_json(path: Path, **changes: Any) -> None:
    """Replaces values of a JSON object in a file; None removes the key."""
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in values.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")
