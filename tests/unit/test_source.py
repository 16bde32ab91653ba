"""An opened checkpoint, and what is written from one."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from openglm.checkpoints import open_checkpoint, save_checkpoint
from openglm.checkpoints.files import PickleFile
from openglm.checkpoints.random import RandomWeights
from openglm.cli.main import _run
from openglm.errors import CheckpointError, UsageError

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture
def mixed(tmp_path):
    """ChatGLM2 with float32 norms among half-precision weights, as ChatGLM-6B was published."""
    folder = tmp_path / "mixed"
    shutil.copytree(GOLDENS / "chatglm" / "chatglm2_tiny", folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {n: t if "norm" in n else t.half() for n, t in weights.items()},
        folder / "model.safetensors",
    )
    return folder


def test_wide_norms_do_not_name_the_dtype_of_a_file(tmp_path):
    """config.json says float32 of half-precision weights, and loaders double their memory."""
    source = open_checkpoint(GOLDENS / "glm" / "hf")
    weights = {n: source[n] if "norm" in n else source[n].half() for n in source}
    save_checkpoint(tmp_path / "hf", source.config, weights, "hf")
    description = json.loads((tmp_path / "hf" / "config.json").read_text("utf-8"))
    assert description["torch_dtype"] == "float16"


def test_each_tensor_keeps_its_dtype(mixed, tmp_path):
    """Norms lose half their digits on the way, because most other weights have fewer."""
    source = open_checkpoint(mixed)
    assert source.stored_dtype == torch.float16
    assert source.dtypes["final_norm.weight"] == torch.float32
    for layout in ("openglm", "hf"):
        save_checkpoint(tmp_path / layout, source.config, source, layout)
        found = open_checkpoint(tmp_path / layout)
        assert all(torch.equal(found[name], source[name]) for name in source)
        assert found.dtypes == source.dtypes
    save_checkpoint(tmp_path / "half", source.config, source, "hf", dtype=torch.float16)
    assert set(open_checkpoint(tmp_path / "half").dtypes.values()) == {torch.float16}


def test_a_group_is_read_once_in_order(monkeypatch):
    """Converting reads every fused tensor several times: hours, for GLM-130B."""
    source = open_checkpoint(GOLDENS / "glm130b" / "sat_tp2")
    reads = []
    original = PickleFile.get
    monkeypatch.setattr(PickleFile, "get", lambda f, n: reads.append((f.path, n)) or original(f, n))
    for name in source:
        source[name]
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize("layout", ["openglm", "sat"])
def test_writing_reads_each_tensor_once(layout, tmp_path, monkeypatch):
    """The order of the new files makes the old ones be read several times."""
    source = open_checkpoint(GOLDENS / "glm130b" / "sat_tp2")
    reads = []
    original = PickleFile.get
    monkeypatch.setattr(PickleFile, "get", lambda f, n: reads.append((f.path, n)) or original(f, n))
    save_checkpoint(tmp_path / "new", source.config, source, layout)
    assert len(reads) == len(set(reads))


@pytest.mark.parametrize(
    "change", [{"norm_eps": 1e-6}, {"residual_scale": 3.0}, {"rotary_compute": "float32"}]
)
def test_rank_files_that_cannot_say_what_they_hold(change, tmp_path):
    """A network comes back from rank files as another one."""
    config = dataclasses.replace(open_checkpoint(GOLDENS / "glm130b" / "sat_tp1").config, **change)
    weights = RandomWeights(config, 0, torch.float16)
    with pytest.raises(CheckpointError, match=f"cannot say.*{next(iter(change))}"):
        save_checkpoint(tmp_path / "new", config, weights, "sat")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written(tmp_path, monkeypatch, capsys):
    """A conversion fails late, at the wrong place, or goes on without what was asked for."""
    source = open_checkpoint(GOLDENS / "chatglm" / "chatglm2_tiny")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(tmp_path / "link", source.config, source, "hf")
    with pytest.raises(UsageError, match="0 tensor-parallel ranks"):
        save_checkpoint(tmp_path / "new", source.config, source, "hf", num_ranks=0)
    target = str(tmp_path / "new")
    assert _run(["convert", "mini", target, "--to", "openglm", "--tokenizer", "/nope"], False) == 5
    assert "/nope has no tokenizer files" in capsys.readouterr().err
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    with pytest.raises(CheckpointError, match="10 bytes free"):
        save_checkpoint(tmp_path / "new", source.config, source, "hf")
