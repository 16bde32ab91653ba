"""`glm convert` of checkpoints larger than memory: the peak is a tensor group, not a file."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from helpers_models import tiny_config
from openglm.checkpoints import open_checkpoint, save_checkpoint
from openglm.model import build

GLM_130B = {
    "position": "rotary",
    "rotary_compute": "float16",
    "rotary_frequencies": "float16",
    "context": "until_sop",
    "residual": "deepnorm",
    "activation": "geglu",
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "max_position_embeddings": 2048,
}
MEASURED = """
import resource, sys
from openglm.cli.main import _run
code = _run(sys.argv[1:], False)
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
sys.exit(code)
"""
MIB = 2**20


class Sawtooth(Mapping[str, Tensor]):
    """Weights made when they are asked for, so that the test itself holds none."""

    def __init__(self, config):
        self.shapes = {name: p.shape for name, p in build(config).named_parameters()}

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shapes[name]
        start = sorted(self.shapes).index(name)
        row = (torch.arange(shape[-1]) + start) % 251
        return row.to(torch.float16).expand(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def convert(*arguments: str) -> int:
    """Runs `glm convert` in a process of its own; its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "convert", *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.rpartition("peak ")[2])


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


LARGE = tiny_config(
    **GLM_130B,
    hidden_size=2304,
    intermediate_size=6144,
    vocab_size=16000,
    num_layers=16,
    residual_scale=32**0.5,
)
SMALL = tiny_config(**GLM_130B, residual_scale=6**0.5)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A checkpoint of 2 GB on four ranks, and a tiny one to know what the libraries take."""
    folder = tmp_path_factory.mktemp("sources")
    for name, config in (("large", LARGE), ("small", SMALL)):
        save_checkpoint(folder / name, config, Sawtooth(config), "sat", num_ranks=4)
    assert size_of(folder / "large") > 2e9
    return folder


@pytest.mark.parametrize(("to", "options"), [("sat", ["--tp", "2"]), ("openglm", [])])
def test_peak_memory_of_a_large_checkpoint(to, options, sources, tmp_path):
    """GLM-130B (260 GB) cannot be re-split on any machine that its users have."""
    peaks = {
        name: convert(str(sources / name), str(tmp_path / name), "--to", to, *options)
        for name in ("large", "small")
    }
    # What is read between two openings of the files, and a group in each layout.
    assert peaks["large"] - peaks["small"] < 500 * MIB
    found, weights = open_checkpoint(tmp_path / "large"), Sawtooth(LARGE)
    assert size_of(tmp_path / "large") == pytest.approx(size_of(sources / "large"), rel=0.01)
    for name in ("word_embeddings.weight", "layers.15.mlp.gate_proj.weight", "final_norm.bias"):
        assert torch.equal(found[name], weights[name])
