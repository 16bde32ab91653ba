"""Presets at full size without their files."""

from __future__ import annotations

import pytest
import torch

import openglm
from helpers_models import tiny_config
from openglm.checkpoints import load_random
from openglm.checkpoints.random import POOL, RandomWeights
from openglm.errors import OpenGLMError
from openglm.scheme import Scheme


def test_weights_are_random_and_repeatable():
    """All tensors hold the same numbers, norms destroy the signal, or a seed means nothing."""
    config = tiny_config()
    weights, again = (RandomWeights(config, 3, torch.float32) for _ in range(2))
    first = {name: weights[name] for name in weights}
    assert all(torch.equal(first[name], again[name]) for name in again)
    q, k = (first[f"layers.0.attention.{x}_proj.weight"] for x in "qk")
    assert not torch.equal(q, k)
    assert q.std() == pytest.approx(config.initializer_range, rel=0.1)
    assert torch.equal(first["final_norm.weight"], torch.ones(24))
    assert torch.equal(first["final_norm.bias"], torch.zeros(24))


def test_large_tensors_are_filled_to_the_end(monkeypatch):
    """A tensor larger than the pool of numbers keeps what was in memory."""
    config = tiny_config(vocab_size=POOL // 24 + 1000)
    words = RandomWeights(config, 0, torch.float32)["word_embeddings.weight"]
    assert words.numel() > POOL
    assert words[-1000:].std() == pytest.approx(config.initializer_range, rel=0.05)


@pytest.mark.parametrize("bits", [0, 8, 4])
def test_networks_of_random_weights_run(bits):
    """A model of random weights gives NaN, or is not quantized."""
    config = tiny_config()
    network = load_random(config, scheme=Scheme(bits=bits) if bits else None)
    dtype = network.layers[0].attention.q_proj.weight.dtype
    assert dtype == (torch.int8 if bits else torch.float32)
    model = openglm.LanguageModel(network, None, "random")
    logits = model.logits(torch.arange(10)[None])
    assert torch.isfinite(logits).all()
    assert logits.std() > 0


def test_random_weights_of_a_folder():
    """Only presets can be measured, though a folder says its shapes, too."""
    model = openglm.load("mini", random_weights=True)
    assert model.config == openglm.load("mini").config


def test_options_that_random_weights_cannot_have():
    """An option is accepted and ignored."""
    with pytest.raises(OpenGLMError, match="name, dtype and device only"):
        openglm.load("glm-base", random_weights=True, exact_rotary=True)
