"""Every bad checkpoint has its own error: what is wrong, where, and what to do about it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_models import edit_json, refused, write_checkpoint
from openglm.checkpoints import save as save_module

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"
NORM = "transformer.final_layernorm.bias"
RANK = "release/mp_rank_{:02d}_model_states.pt"


@pytest.fixture
def hf(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", "hf")
    return tmp_path / "model"


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    write_checkpoint(tmp_path / "model", "megatron", num_ranks=3)
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(save_module, "SHARD_BYTES", 40_000)
    write_checkpoint(tmp_path / "model", "hf")
    return tmp_path / "model"


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def change_rank(folder: Path, rank: int, change: Callable[[dict[str, object]], object]) -> None:
    content = torch.load(folder / RANK.format(rank), weights_only=True)
    change(content)
    torch.save(content, folder / RANK.format(rank))


# ------------------------------------------------------------------ damaged files


@pytest.mark.parametrize("kept", [7, 300, -1])
def test_truncated_safetensors(kept, hf):
    """A broken download gives a traceback of another library, or wrong weights."""
    path = hf / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    refused(hf, str(path), f"{path.stat().st_size} bytes", "not a complete safetensors file")


@pytest.mark.parametrize("kept", [3, 5000, -1])
def test_truncated_torch_file(kept, megatron):
    """A broken download of an official file gives a traceback of torch."""
    path = megatron / RANK.format(1)
    path.write_bytes(path.read_bytes()[:kept])
    refused(megatron, str(path))


@pytest.mark.parametrize(("content", "said"), [(LFS_POINTER, "Git LFS pointer"), (b"", "is empty")])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_pointer_or_nothing_instead_of_weights(name, content, said, hf):
    """The commonest failed download, a clone without LFS, is not recognised."""
    (hf / "model.safetensors").unlink()
    (hf / name).write_bytes(content)
    refused(hf, str(hf / name), said)


@pytest.mark.parametrize(("content", "said"), [(LFS_POINTER, "Git LFS pointer"), (b"", "is empty")])
def test_pointer_or_nothing_instead_of_a_rank(content, said, megatron):
    """One rank of an official checkpoint that was not downloaded goes unnoticed."""
    (megatron / RANK.format(2)).write_bytes(content)
    refused(megatron, str(megatron / RANK.format(2)), said)


# ------------------------------------------------------------------ hostile pickles


class Hostile:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("layout", ["hf", "megatron"])
def test_a_pickle_that_runs_code_is_not_run(layout, zipped, tmp_path):
    """Opening a checkpoint from the internet runs what its author wrote into it."""
    write_checkpoint(tmp_path / "model", layout)
    marker = tmp_path / "code was run"
    hostile = {"module": {"word_embeddings.weight": Hostile(marker)}, "extra": Hostile(marker)}
    path = tmp_path / "model" / ("pytorch_model.bin" if layout == "hf" else RANK.format(0))
    (tmp_path / "model" / "model.safetensors").unlink(missing_ok=True)
    torch.save(hostile, path, _use_new_zipfile_serialization=zipped)
    error = refused(tmp_path / "model", str(path), "wants to run code", "system")
    assert not marker.exists()
    assert "\x1b" not in error.message, "terminal control codes in the message"
    assert "can still be loaded" not in error.message, "an invitation to run it"


# ------------------------------------------------------------------ shards and their index


def test_missing_shard(sharded):
    """A half-finished download is loaded as far as it goes."""
    missing = sorted(sharded.glob("*.safetensors"))[1]
    missing.unlink()
    refused(sharded, str(sharded), "lacks 1 of", missing.name)


def test_stale_index(sharded):
    """Shards of one version are read with the index of another."""
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    other = next(file for file in index.values() if file != index[NORM])
    edit_json(path, weight_map=index | {NORM: other})
    refused(sharded, str(sharded), "stale", other, NORM)


def test_tensor_in_two_shards(sharded):
    """Of two versions of a weight, one is taken by chance."""
    first, *_, last = sorted(sharded.glob("*.safetensors"))
    save_file(load_file(first) | {NORM: load_file(last)[NORM]}, first)
    refused(sharded, str(sharded), "several shards", NORM)


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"weight_map": {}}'])
def test_index_without_a_table(content, sharded):
    """A damaged index gives a KeyError."""
    (sharded / "model.safetensors.index.json").write_text(content, encoding="utf-8")
    refused(sharded, str(sharded / "model.safetensors.index.json"))


def test_index_that_leads_out_of_the_folder(sharded):
    """A downloaded index makes the loader open files elsewhere on the disk."""
    shard = next(sharded.glob("*.safetensors"))
    shard.rename(sharded.parent / shard.name)
    path = sharded / "model.safetensors.index.json"
    index = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    moved = {n: f"../{f}" if f == shard.name else f for n, f in index.items()}
    edit_json(path, weight_map=moved)
    refused(sharded, f"../{shard.name}")


# ------------------------------------------------------------------ names, shapes, dtypes


def test_missing_tensor(hf):
    """A network runs with a random or zero weight."""
    change_tensors(hf, lambda tensors: tensors.pop(NORM))
    error = refused(hf, str(hf), f"missing (1): {NORM}")
    assert "unexpected" not in error.message
    assert "wrong shape" not in error.message


def test_unexpected_tensor(hf):
    """A weight of the file is dropped: the network is not the one that was trained."""
    change_tensors(hf, lambda tensors: tensors.update(extra=torch.zeros(3)))
    error = refused(hf, str(hf), "unexpected (1): extra")
    assert "missing" not in error.message


def test_wrong_shape(hf):
    """A weight is cut, stretched or broadcast to fit."""
    change_tensors(hf, lambda tensors: tensors.update({NORM: torch.zeros(25)}))
    refused(hf, f"wrong shape (1): {NORM} is (25,), not (24,)")


def test_three_lists_and_near_names(hf):
    """Of several problems only the first is told, and a misspelt name is not found."""

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM + "es"] = tensors.pop(NORM)
        tensors["word_embeddings.weight"] = torch.zeros(61, 24)

    change_tensors(hf, change)
    error = refused(
        hf, f"missing (1): {NORM}", f"unexpected (1): {NORM}es", "wrong shape (1): word_embeddings"
    )
    assert f"did you mean '{NORM}'" in error.hint


def test_long_lists_are_cut(hf):
    """A wrong file fills the screen with names."""
    change_tensors(hf, lambda tensors: tensors.clear() or tensors.update(x=torch.zeros(1)))
    assert len(refused(hf, "missing (41)", "and 33 more").message) < 800


def test_lists_name_the_rank(megatron):
    """It is not told which of several rank files is wrong."""
    change_rank(megatron, 1, lambda content: content["module"].pop(NORM))
    refused(megatron, f"missing (1): {NORM} (rank 1)")


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64, torch.int8])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_dtypes_that_weights_cannot_have(name, dtype, hf):
    """Quantised or double weights are cast without a word."""
    tensors = load_file(hf / "model.safetensors")
    tensors[NORM] = tensors[NORM].to(dtype)
    (hf / "model.safetensors").unlink()
    save_file(tensors, hf / name) if name.endswith("safetensors") else torch.save(
        tensors, hf / name
    )
    error = refused(hf, str(hf / name), NORM)
    number = str(torch.tensor([], dtype=dtype).element_size() * 8)
    assert number in error.message
    assert "float32, float16, bfloat16" in str(error)
