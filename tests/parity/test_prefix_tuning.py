"""P-Tuning v2 of ChatGLM-6B and ChatGLM2 against recordings of the official code."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import openglm
from openglm.errors import CheckpointError

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
MODELS = ["chatglm6b_tiny", "chatglm6b_28layers", "chatglm2_tiny"]
KINDS = ["prefix_plain", "prefix_proj"]

pytestmark = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in MODELS for kind in KINDS]
)


@cache
def load(name, kind):
    path = GOLDENS / name / f"{kind}.safetensors"
    return openglm.load(GOLDENS / name, dtype="float32", device="cpu", prefix=path)


@cache
def recorded(name, kind):
    with np.load(GOLDENS / name / f"{kind}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def close(actual, expected):
    assert_close(actual, expected, atol=1e-5, rtol=0)


def test_logits(name, kind):
    """A tuned model answers as if it were not tuned, or tuned otherwise."""
    close(load(name, kind).logits(recorded(name, kind)["ids"]), recorded(name, kind)["logits"])


def test_cached_decoding(name, kind):
    """The prefix is counted as tokens, and later positions are wrong."""
    arrays, model = recorded(name, kind), load(name, kind)
    ids, num_prompt = arrays["dec_ids"], int(arrays["dec_n_prompt"])
    cached = model.new_cache(1, ids.shape[1])
    rows = [model.logits(ids[:, :num_prompt], cache=cached)[:, -1]]
    for place in range(num_prompt, ids.shape[1]):
        rows.append(model.logits(ids[:, place : place + 1], cache=cached)[:, -1])
    expected = arrays["dec_step_logits"]
    close(torch.stack(rows, dim=1)[:, : expected.shape[1]], expected)
    keys = cached.keys[0][0]  # (P + tokens, K, D)
    final = arrays["dec_final_key_layer0"][:, 0]
    close(keys[: len(final)], final)


def test_left_padded_rows(name, kind):
    """Padding sees more of the prefix, or tokens less."""
    arrays, model = recorded(name, kind), load(name, kind)
    ids, padding = arrays["leftpad_ids"], arrays["leftpad_attention_mask"]
    positions, blocks = arrays["leftpad_position_ids"], None
    if padding.dim() == 4:
        mask = ~padding[:, 0]
        positions, blocks = positions[:, 0], positions[:, 1]
        real = (ids != 3).long().cumsum(1) > 0
    else:
        real = padding.bool()
        causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        mask = causal & real[:, None, :] | ~real[:, :, None]
    logits = model.logits(ids, positions, blocks, mask)
    close(logits[real], arrays["leftpad_logits"][real])


def test_keys_and_values(name, kind):
    """Keys and values of the layers are mixed up."""
    arrays, prefix = recorded(name, kind), load(name, kind).network.prefix
    close(prefix.keys[1], arrays["prefix_key_layer1"][:, 0])
    close(prefix.values[1], arrays["prefix_value_layer1"][:, 0])


def test_a_prefix_of_another_model_is_refused(name, kind):
    """A prefix of the wrong shape is cut up anyhow."""
    other = "chatglm2_tiny" if name.startswith("chatglm6b") else "chatglm6b_tiny"
    with pytest.raises(CheckpointError, match="this model takes"):
        openglm.load(GOLDENS / name, prefix=GOLDENS / other / f"{kind}.safetensors")
    with pytest.raises(CheckpointError, match="no prefix encoder"):
        openglm.load(GOLDENS / name, prefix=GOLDENS / other / "model.safetensors")
