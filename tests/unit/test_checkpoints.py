"""Checkpoint layouts: recognised by content, converted without a changed bit, split and merged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import openglm
from helpers_models import (
    GLM_GOLDENS,
    assert_same,
    random_model,
    tiny_config,
    weights_in,
    write_checkpoint,
)
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.checkpoints.layouts import detect
from openglm.errors import CheckpointError, UsageError
from openglm.tokenizers import find_tokenizer

LAYOUTS = ("openglm", "hf", "megatron")


def rank_weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    (path,) = folder.glob(f"*/mp_rank_{rank:02d}_model_states.pt")
    return torch.load(path, weights_only=True)["module"]


def convert(source: Path, target: Path, layout: str, num_ranks: int = 1) -> Path:
    loaded = load_checkpoint(source)
    weights = loaded.model.state_dict()
    save_checkpoint(target, loaded.config, weights, layout, num_ranks=num_ranks)
    return target


# ------------------------------------------------------------------ recognising


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["megatron", "hf-glm-10b", "openglm"])
def test_layout_is_recognised_by_content(layout, name, tmp_path):
    """A renamed download is read as another format because of its folder's name."""
    weights = write_checkpoint(tmp_path / name, layout)
    assert detect(tmp_path / name).layout == layout
    assert_same(weights_in(tmp_path / name), weights)


@pytest.mark.parametrize("kept", ["latest", "latest_checkpointed_iteration.txt", None])
def test_megatron_folders_with_either_tracker_or_none(kept, tmp_path):
    """Official folders come with DeepSpeed's tracker, Megatron's, or as the tag folder alone."""
    weights = write_checkpoint(tmp_path / "model", "megatron", num_ranks=2)
    for tracker in ("latest", "latest_checkpointed_iteration.txt"):
        if tracker != kept:
            (tmp_path / "model" / tracker).unlink()
    folder = tmp_path / "model" if kept else tmp_path / "model" / "release"
    assert detect(folder).layout == "megatron"
    assert_same(weights_in(folder), weights)


def test_prefixed_names_are_the_same_network():
    """Files written by save_pretrained (prefix glm.) are refused or read differently."""
    plain = load_file(GLM_GOLDENS / "hf" / "model.safetensors")
    prefixed = load_file(GLM_GOLDENS / "hf_prefixed" / "model.safetensors")
    assert sorted(prefixed) == sorted(f"glm.{name}" for name in plain)
    assert_same(weights_in(GLM_GOLDENS / "hf_prefixed"), weights_in(GLM_GOLDENS / "hf"))


# ------------------------------------------------------------------ round trips


def test_chain_of_conversions_gives_back_the_official_file(tmp_path):
    """Converting a checkpoint to and fro changes a name, a bit of a weight, or the config."""
    source = GLM_GOLDENS / "hf"
    ours = convert(source, tmp_path / "ours", "openglm")
    split = convert(ours, tmp_path / "split", "megatron", num_ranks=2)
    merged = convert(split, tmp_path / "merged", "megatron")
    back = convert(merged, tmp_path / "back", "hf")
    assert_same(load_file(back / "model.safetensors"), load_file(source / "model.safetensors"))
    official = json.loads((source / "config.json").read_text(encoding="utf-8"))
    written = json.loads((back / "config.json").read_text(encoding="utf-8"))
    assert {key: written.get(key) for key in official if key != "auto_map"} == {
        key: value for key, value in official.items() if key != "auto_map"
    }
    assert load_checkpoint(back).config == load_checkpoint(source).config


@pytest.mark.parametrize("first", LAYOUTS)
@pytest.mark.parametrize("second", LAYOUTS)
@pytest.mark.parametrize("position", ["learned_2d", "learned"])
@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu_erf"])
def test_weights_and_config_survive_conversion(first, second, position, activation, tmp_path):
    """After a conversion the model computes with another GELU or position table."""
    config = tiny_config(position=position, activation=activation)
    weights = write_checkpoint(tmp_path / "first", first, config)
    convert(tmp_path / "first", tmp_path / "second", second)
    loaded = load_checkpoint(tmp_path / "second")
    assert_same(loaded.model.state_dict(), weights)
    assert loaded.config == config


@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm_epsilon_and_dropouts_survive_conversion(layout, tmp_path):
    """After a conversion the norms use another epsilon, or fine-tuning another dropout."""
    config = tiny_config(
        norm_eps=1e-3, hidden_dropout=0.0, attention_dropout=0.2, embedding_dropout=0.3
    )
    config = dataclasses.replace(config, initializer_range=0.05)
    write_checkpoint(tmp_path / "model", layout, config)
    assert load_checkpoint(tmp_path / "model").config == config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_half_precision_is_kept(layout, dtype, tmp_path):
    """Weights take twice their memory, or lose bits, after load and save."""
    weights = {n: t.to(dtype) for n, t in random_model(tiny_config()).state_dict().items()}
    save_checkpoint(tmp_path / "model", tiny_config(), weights, layout)
    loaded = load_checkpoint(tmp_path / "model")
    assert loaded.stored_dtype == dtype
    assert_same(loaded.model.state_dict(), weights)
    widened = load_checkpoint(tmp_path / "model", torch.float32).model.state_dict()
    assert_same(widened, {name: tensor.float() for name, tensor in weights.items()})


def test_metadata_of_our_folders_survives(tmp_path):
    """Where a model came from is lost when it is saved."""
    weights = random_model(tiny_config()).state_dict()
    about = {"steps": 7, "corpus": "维基"}
    save_checkpoint(tmp_path / "model", tiny_config(), weights, "openglm", about=about)
    assert load_checkpoint(tmp_path / "model").metadata == about


# ------------------------------------------------------------------ tensor parallelism


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 6, 12])
def test_splitting_and_merging_changes_no_bit(num_ranks, tmp_path):
    """Weights merged from tensor-parallel ranks are permuted."""
    weights = write_checkpoint(tmp_path / "split", "megatron", num_ranks=num_ranks)
    assert len(list((tmp_path / "split" / "release").iterdir())) == num_ranks
    assert_same(weights_in(tmp_path / "split"), weights)


def test_split_equals_the_official_split(tmp_path):
    """Folders written here are cut at other places than the official code cuts them."""
    convert(GLM_GOLDENS / "megatron", tmp_path / "split", "megatron", num_ranks=2)
    for rank in (0, 1):
        expected = rank_weights(GLM_GOLDENS / "megatron_MP2", rank)
        assert_same(rank_weights(tmp_path / "split", rank), expected)


def test_each_rank_holds_whole_heads(tmp_path):
    """A rank's fused rows are not [its queries; its keys; its values], as Megatron reads them."""
    weights = write_checkpoint(tmp_path / "split", "megatron", num_ranks=3)
    name = "layers.1.attention.{}_proj.weight"
    for rank in range(3):
        fused = rank_weights(tmp_path / "split", rank)[
            "transformer.layers.1.attention.query_key_value.weight"
        ]
        rows = slice(8 * rank, 8 * rank + 8)  # 24 rows over 3 ranks
        expected = torch.cat([weights[name.format(part)][rows] for part in "qkv"])
        assert torch.equal(fused, expected)


def test_differing_copies_are_reported(tmp_path, caplog):
    """Ranks of two different models are merged without a word."""
    write_checkpoint(tmp_path / "split", "megatron", num_ranks=2)
    path = tmp_path / "split" / "release" / "mp_rank_01_model_states.pt"
    content = torch.load(path, weights_only=True)
    content["module"]["transformer.final_layernorm.bias"] += 1
    torch.save(content, path)
    load_checkpoint(tmp_path / "split")
    assert ["final_layernorm.bias differs" in r.getMessage() for r in caplog.records] == [True]


@pytest.mark.parametrize(
    ("layout", "num_ranks", "named"),
    [("megatron", 5, "num_attention_heads=12"), ("megatron", 0, "0"), ("hf", 2, "hf")],
)
def test_impossible_splits_are_refused(layout, num_ranks, named, tmp_path):
    """A checkpoint that no one can read is written."""
    with pytest.raises(UsageError, match=named):
        write_checkpoint(tmp_path / "split", layout, num_ranks=num_ranks)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ tokenizers, safety


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tokenizer_files_travel(layout, mini, tmp_path):
    """A converted model has lost its vocabulary."""
    config = tiny_config(vocab_size=mini.vocab_size + 8)
    write_checkpoint(tmp_path / "model", layout, config, tokenizer=mini)
    text = "the cat 你好 🙂\n"
    model = openglm.load(tmp_path / "model", device="cpu")
    assert model.tokenizer.kind == "mini"
    assert model.tokenizer.encode(text) == mini.encode(text)
    assert model.tokenizer.decode(model.tokenizer.encode(text)) == text


@pytest.mark.parametrize("layout", LAYOUTS)
def test_official_tokenizers_travel_under_their_official_name(layout, bert, tmp_path):
    """Hugging Face code does not find the tokenizer class of a folder written here."""
    config = tiny_config(vocab_size=bert.vocab_size + 8)
    write_checkpoint(tmp_path / "model", layout, config, tokenizer=bert)
    found = find_tokenizer(tmp_path / "model")
    assert found.kind == "bert"
    assert found.encode("the cats") == bert.encode("the cats")
    written = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text("utf-8"))
    assert written == (
        {"tokenizer_class": "GLMBertTokenizer"} if layout == "hf" else {"kind": "bert"}
    )


def test_an_existing_folder_is_not_overwritten(tmp_path):
    """Saving destroys a checkpoint."""
    weights = write_checkpoint(tmp_path / "model", "hf")
    with pytest.raises(CheckpointError, match="exists already") as error:
        write_checkpoint(tmp_path / "model", "openglm")
    assert error.value.hint
    assert_same(weights_in(tmp_path / "model"), weights)


@pytest.mark.parametrize("layout", ["hf", "megatron"])
def test_a_failed_save_leaves_nothing_behind(layout, tmp_path):
    """Half a checkpoint, or a hidden temporary folder, stays on the disk."""
    config = tiny_config(intermediate_size=48)  # the official code fixes 4 * hidden_size
    with pytest.raises(CheckpointError, match="intermediate_size=48"):
        write_checkpoint(tmp_path / "model", layout, config)
    assert not list(tmp_path.iterdir())


def test_an_incomplete_save_is_refused(tmp_path):
    """A checkpoint without all weights is written, and found out when it is needed."""
    weights = random_model(tiny_config()).state_dict()
    del weights["final_norm.bias"]
    with pytest.raises(CheckpointError, match=r"final_norm\.bias"):
        save_checkpoint(tmp_path / "model", tiny_config(), weights, "openglm")
    assert not list(tmp_path.iterdir())


def test_unknown_layouts_suggest_a_near_name(tmp_path):
    """A typo in --to is not explained."""
    with pytest.raises(UsageError, match="'megatorn'") as error:
        write_checkpoint(tmp_path / "model", "megatorn")
    assert "'megatron'" in error.value.hint
