"""Folders that are no checkpoint, and descriptions that do not fit the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers_models import edit_json, refused, write_checkpoint

RANK = "release/mp_rank_{:02d}_model_states.pt"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", "hf")
    return tmp_path / "model"


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", "openglm")
    return tmp_path / "model"


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", "megatron", num_ranks=3)
    return tmp_path / "model"


# ------------------------------------------------------------------ config.json


def test_config_is_missing(hf):
    """Weights without a description give a FileNotFoundError."""
    (hf / "config.json").unlink()
    refused(hf, str(hf), "config.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{'a': 1}", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "not a JSON object")],
)
def test_config_is_not_json(content, said, hf):
    """A damaged description gives a traceback of the JSON library."""
    (hf / "config.json").write_bytes(content)
    refused(hf, str(hf / "config.json"), said)


@pytest.mark.parametrize(
    ("key", "value", "listed"),
    [
        ("hidden_size", 48, "wrong shape (41)"),
        ("vocab_size", 61, "wrong shape (1): word_embeddings.weight is (60, 24), not (61, 24)"),
        ("max_sequence_length", 41, "wrong shape (2)"),
        ("num_layers", 4, "missing (12)"),
        ("num_layers", 2, "unexpected (12)"),
        ("block_position_encoding", False, "unexpected (1)"),
    ],
)
def test_config_disagrees_with_the_weights(key, value, listed, hf):
    """A network of the described size is filled with weights of another."""
    edit_json(hf / "config.json", **{key: value})
    refused(hf, str(hf), listed)


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("relative_encoding", True, "relative_encoding=true"),
        ("spell_length", 3, "spell_length"),
        ("model_type", "llama", "model_type='llama'"),
        ("num_layers", 10**9, "num_layers=1000000000"),
        ("num_attention_heads", 5, "num_attention_heads=5"),
        ("activation", "relu", "activation='relu'"),
        ("hidden_size", "wide", "hidden_size='wide'"),
        ("hidden_size", [24], "hidden_size=[24]"),
        ("num_layers", 2.5, "num_layers=2.5"),
        ("layernorm_epsilon", "1e-5", "norm_eps='1e-5'"),
    ],
)
def test_config_values_that_cannot_be(key, value, named, hf):
    """A network that no GLM has is built, or a value of a wrong type gives a traceback."""
    edit_json(hf / "config.json", **{key: value})
    refused(hf, str(hf), named)


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "max_sequence_length"])
def test_config_lacks_a_size(key, hf):
    """A size is guessed."""
    edit_json(hf / "config.json", **{key: None})
    refused(hf, str(hf), "lacks", key)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        ({"hidden_sise": 24}, "'hidden_sise'"),
        ({}, "lacks vocab_size"),
        (7, "model"),
    ],
)
def test_own_config_is_wrong(model, named, ours):
    """A description edited by hand is half understood."""
    edit_json(ours / "config.json", model=model)
    refused(ours, str(ours), named)


def test_own_format_of_a_later_version(ours):
    """A folder of a later openglm is read as if nothing had changed."""
    edit_json(ours / "config.json", format_version=2)
    refused(ours, str(ours), "2")


# ------------------------------------------------------------------ Megatron ranks and trackers


def test_a_rank_in_the_middle_is_missing(megatron):
    """Ranks of an incomplete download are joined in a wrong order."""
    (megatron / RANK.format(1)).unlink()
    refused(megatron, str(megatron / "release"), "ranks 1")


def test_the_last_rank_is_missing(megatron):
    """The last part of all weights is missing, and no one notices."""
    (megatron / RANK.format(2)).unlink()
    refused(megatron, str(megatron), "saved by 3", "has 2 mp_rank files")


def test_the_last_rank_is_missing_in_a_folder_that_does_not_say_how_many(megatron):
    """A third of a network is loaded as a narrower network."""
    (megatron / RANK.format(2)).unlink()
    for rank in (0, 1):
        content = torch.load(megatron / RANK.format(rank), weights_only=True)
        del content["mp_world_size"]
        torch.save(content, megatron / RANK.format(rank))
    refused(megatron, str(megatron), "vocab_size=60")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"weights": {}}, "has no dictionary 'module'"),
        ({"module": {"word_embeddings.weight": 3}}, "not tensors: word_embeddings.weight"),
        ({"module": {}}, "position_embeddings.weight (GLM)"),
        ([1], "list"),
    ],
)
def test_rank_file_without_weights(content, said, megatron):
    """An optimizer file in place of the weights gives a KeyError."""
    torch.save(content, megatron / RANK.format(0))
    refused(megatron, str(megatron), said)


@pytest.mark.parametrize("tag", ["2000", "../other", "", ".", "/tmp"])
def test_tracker_names_no_folder_of_the_checkpoint(tag, megatron):
    """A downloaded tracker makes the loader read elsewhere, or an old step is taken."""
    (megatron.parent / "other").mkdir()
    for tracker in ("latest", "latest_checkpointed_iteration.txt"):
        (megatron / tracker).write_text(tag, encoding="utf-8")
    refused(megatron, str(megatron / "latest"), repr(tag))


def test_tracker_is_binary(megatron):
    """A damaged tracker gives a UnicodeDecodeError."""
    (megatron / "latest_checkpointed_iteration.txt").write_bytes(b"\xff\xfe\x00")
    refused(megatron, str(megatron / "latest_checkpointed_iteration.txt"))


def test_tag_folder_without_ranks(megatron):
    """A folder with only optimizer states gives an IndexError."""
    for rank in range(3):
        (megatron / RANK.format(rank)).unlink()
    refused(megatron, str(megatron / "release"), "mp_rank")


def test_megatron_folder_without_a_head_count(megatron):
    """The number of heads is guessed, and the model talks nonsense."""
    (megatron / "config.json").unlink()
    error = refused(megatron, "attention heads", "hidden_size=24", "num_layers=3")
    assert "num_attention_heads" in error.hint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_attention_heads": "four"}, "four"),
        ({"num_attention_heads": 5}, "5"),
        ({"vocab_size": 61}, "vocab_size=61"),
        ({"activation": "relu"}, "relu"),
    ],
)
def test_description_beside_megatron_files_is_wrong(change, named, megatron):
    """The description of another model is used for these weights."""
    edit_json(megatron / "config.json", **change)
    refused(megatron, str(megatron), named)


# ------------------------------------------------------------------ folders


def test_folder_that_is_no_checkpoint(tmp_path):
    """It is not told what was looked for and what is there instead."""
    (tmp_path / "holiday.jpg").write_bytes(b"")
    error = refused(tmp_path, str(tmp_path), "model.safetensors", "pytorch_model.bin", "latest")
    assert "holiday.jpg" in error.hint


def test_a_file_instead_of_its_folder(hf):
    """Naming the weight file gives NotADirectoryError."""
    error = refused(hf / "model.safetensors", "model.safetensors is a file")
    assert str(hf) in error.hint


def test_folder_that_does_not_exist(tmp_path):
    """A typo in a path gives a FileNotFoundError."""
    refused(tmp_path / "modle", str(tmp_path / "modle"))
