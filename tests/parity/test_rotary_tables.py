"""Half-precision rotary tables of the released models, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from openglm.config import ModelConfig
from openglm.nn.rotary import RotaryPositions

GOLDENS = Path(__file__).parents[1] / "goldens"
HEAD_DIM = 128


def tables(positions, head_dim=HEAD_DIM, **axes):
    """Cosines and sines (positions, pairs) of one plane."""
    config = ModelConfig(
        vocab_size=8,
        hidden_size=head_dim,
        num_layers=1,
        num_attention_heads=1,
        max_position_embeddings=8,
        intermediate_size=8,
        **axes,
    )
    ids = torch.from_numpy(positions)[None]
    _, rotation = RotaryPositions(config)(torch.zeros(()), ids, ids)
    return rotation.cos[0, :, 0, 0].numpy(), rotation.sin[0, :, 0, 0].numpy()


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("chatglm2_half", {"rotary_compute": "float16", "rotary_frequencies": "as_compute"}),
        ("chatglm2_float", {}),
        ("chatglm3_float", {}),
    ],
)
def test_chatglm2_and_3(name, axes):
    """Angles at long positions are not those that the model was trained with."""
    recorded = np.load(GOLDENS / "chatglm" / "chatglm2_chatglm3_rope_tables.npz")
    cos, sin = tables(recorded["positions"], position="rotary", rotary_dim=HEAD_DIM // 2, **axes)
    np.testing.assert_array_equal(cos, recorded[name][..., 0])
    np.testing.assert_array_equal(sin, recorded[name][..., 1])


@pytest.mark.parametrize(("mode", "compute"), [("half", "float16"), ("float_mode", "float32")])
def test_chatglm6b(mode, compute):
    """The frequencies of ChatGLM-6B are not rounded to fp16 first, or the angles not at all."""
    recorded = np.load(GOLDENS / "chatglm" / "chatglm6b_rope_tables.npz")
    axes = {"rotary_compute": compute, "rotary_frequencies": "float16"}
    cos, sin = tables(recorded["positions"], position="rotary_2d", **axes)
    half = cos.shape[1]  # the official tables repeat each angle
    np.testing.assert_array_equal(cos, recorded[f"cos_{mode}"][:, :half])
    np.testing.assert_array_equal(sin, recorded[f"sin_{mode}"][:, half:])


@pytest.mark.parametrize(
    ("mode", "axes"),
    [
        ("fp16", {"rotary_compute": "float16", "rotary_frequencies": "float16"}),
        ("fp32", {}),
    ],
)
def test_glm130b(mode, axes):
    """GLM-130B turns by exact angles where the released code rounds them."""
    recorded = np.load(GOLDENS / "glm130b" / "rotary_tables.npz")
    width = recorded[f"cos_{mode}_angles"].shape[1]
    cos, sin = tables(recorded["positions"], head_dim=width, position="rotary", **axes)
    np.testing.assert_array_equal(cos, recorded[f"cos_{mode}_angles"][:, : width // 2])
    np.testing.assert_array_equal(sin, recorded[f"sin_{mode}_angles"][:, width // 2 :])
