"""Texts that are longer than a model has positions, or than it was trained on."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest

from openglm.checkpoints.maps.chatglm2 import config_from_json, config_to_json
from openglm.cli.main import _run
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import _warn_of_length, causal_prompt
from openglm.engine.writer import Writer
from openglm.errors import ContextOverflow
from openglm.registry import preset, presets, trained_on

PARAMS = SamplingParams(max_tokens=1)
CHATGLM2 = preset("chatglm2-6b").model


def read(config, num_tokens):
    """A request with a prompt of so many tokens, the last of which is fed alone."""
    Writer(config, causal_prompt([5] * (num_tokens + 1), frozenset()), PARAMS)


@pytest.fixture
def warned(caplog):
    _warn_of_length.cache_clear()
    caplog.set_level(logging.WARNING, "openglm")
    return caplog


def test_a_text_beyond_what_was_trained_is_warned_of_once(warned):
    """ChatGLM2 has 32K positions and learnt dialogues of 8K: quality drops, and nobody says so."""
    read(CHATGLM2, 8192)
    assert not warned.messages
    for length in (8193, 9000):
        read(CHATGLM2, length)
    assert len(warned.messages) == 1
    assert "ChatGLM2-6B was trained on, 8192 tokens" in warned.text
    assert "up to 32768" in warned.text


def test_a_text_beyond_the_positions_is_refused(warned):
    """A text is cut, or read at positions that turn to nonsense."""
    for name in ("chatglm2-6b", "chatglm3-6b"):
        config = preset(name).model
        with pytest.raises(ContextOverflow, match="leaves no room"):
            read(config, config.max_position_embeddings)
    assert not warned.messages


def test_other_models_were_trained_as_far_as_they_go(warned):
    """A warning that is always there is read by nobody."""
    found = {name: preset.trained_tokens for name, preset in presets().items()}
    assert {name: longest for name, longest in found.items() if longest} == {"chatglm2-6b": 8192}
    for name in ("chatglm3-6b-32k", "glm-4-9b"):
        read(preset(name).model, 9000)
    assert not warned.messages


def test_the_official_files_are_known():
    """The preset is warned of, the folder that people have is not."""
    assert trained_on(config_from_json(config_to_json(CHATGLM2))) == ("ChatGLM2-6B", 8192)
    exact = dataclasses.replace(CHATGLM2, rotary_compute="float32", rotary_frequencies="float32")
    assert trained_on(exact) == ("ChatGLM2-6B", 8192)
    assert trained_on(dataclasses.replace(exact, num_layers=27)) is None


def test_info_says_it(capsys):
    """Whoever chooses a model by its positions is misled."""
    assert _run(["info", "chatglm2-6b"], False) == 0
    assert "texts of up to 8,192 tokens" in capsys.readouterr().out
    for name, longest in (("chatglm2-6b", 8192), ("chatglm3-6b", None)):
        assert _run(["info", name, "--json"], False) == 0
        assert json.loads(capsys.readouterr().out).get("trained_tokens") == longest
