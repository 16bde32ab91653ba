"""Files of a checkpoint: shards with an index, old and new pickles, bookkeeping of training."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from helpers_models import assert_same, weights_in, write_checkpoint
from openglm.checkpoints import save as save_module


@pytest.mark.parametrize("layout", ["openglm", "hf"])
def test_sharded_folders(layout, tmp_path, monkeypatch):
    """Models above 4 GiB cannot be read back, or their index does not fit the shards."""
    monkeypatch.setattr(save_module, "SHARD_BYTES", 20_000)
    weights = write_checkpoint(tmp_path / "model", layout)
    shards = {path.name: load_file(path) for path in (tmp_path / "model").glob("*.safetensors")}
    assert len(shards) > 3
    for tensors in shards.values():
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text("utf-8"))
    assert index["weight_map"] == {name: file for file, t in shards.items() for name in t}
    assert_same(weights_in(tmp_path / "model"), weights)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("prefix", ["", "glm."])
def test_pytorch_model_bin(prefix, zipped, tmp_path):
    """The released Hugging Face files, which are pickles, old or new, cannot be read."""
    weights = write_checkpoint(tmp_path / "model", "hf")
    single = tmp_path / "model" / "model.safetensors"
    tensors = {prefix + name: tensor for name, tensor in load_file(single).items()}
    single.unlink()
    path = tmp_path / "model" / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    assert_same(weights_in(tmp_path / "model"), weights)


def test_sharded_pytorch_model_bin(tmp_path):
    """Hugging Face folders with several pickles and an index cannot be read."""
    weights = write_checkpoint(tmp_path / "model", "hf")
    single = tmp_path / "model" / "model.safetensors"
    names = sorted(tensors := load_file(single))
    single.unlink()
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        torch.save({name: tensors[name] for name in part}, tmp_path / "model" / file)
        weight_map |= dict.fromkeys(part, file)
    index = tmp_path / "model" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")
    assert_same(weights_in(tmp_path / "model"), weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("random_rng_state", random.getstate()),
        ("torch_rng_state", torch.get_rng_state()),
        ("np_rng_state", np.random.RandomState(0).get_state()),
    ],
    ids=["python", "torch", "numpy"],
)
def test_random_states_of_official_training_do_not_hinder(key, value, tmp_path):
    """Checkpoints as the official training writes them are refused as dangerous."""
    weights = write_checkpoint(tmp_path / "model", "megatron")
    path = tmp_path / "model" / "release" / "mp_rank_00_model_states.pt"
    torch.save(torch.load(path, weights_only=True) | {key: value}, path)
    assert_same(weights_in(tmp_path / "model"), weights)


def test_numpy_states_written_by_an_old_numpy(tmp_path):
    """The official files, written in 2021 under numpy's old module names, are refused."""
    weights = write_checkpoint(tmp_path / "model", "megatron")
    path = tmp_path / "model" / "release" / "mp_rank_00_model_states.pt"
    content = torch.load(path, weights_only=True)
    content["np_rng_state"] = np.random.RandomState(0).get_state()
    torch.save(content, path, _use_new_zipfile_serialization=False)
    new_name, old_name = b"numpy._core.multiarray", b"numpy.core.multiarray"
    written = path.read_bytes().replace(new_name, old_name)
    path.write_bytes(written)
    assert old_name in written
    assert_same(weights_in(tmp_path / "model"), weights)
