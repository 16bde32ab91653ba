"""Checkpoints of training that are damaged, or were none."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from openglm.errors import CheckpointError
from openglm.train.checkpoint import restore, save


@pytest.fixture
def run(tmp_path):
    """A network with its optimizer, and their checkpoint."""
    network = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"step": 1, "tokens_seen": 9}
    return network, optimizer, save(tmp_path, network, optimizer, state, keep=1)


def test_a_checkpoint_comes_back(run):
    """Step and weights of a run are lost."""
    network, optimizer, folder = run
    before = network.weight.clone()
    nn.init.zeros_(network.weight)
    assert restore(folder, network, optimizer) == {"step": 1, "tokens_seen": 9}
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\x80\x04\x95", b"[1]", b'{"step": "1"}', b'{"step": 1.5}', b"[" * 100_000],
    ids=lambda content: repr(content[:20]),
)
def test_a_state_that_is_none(run, content):
    """A damaged file ends in a traceback, or training goes on from a step that is no number."""
    network, optimizer, folder = run
    (folder / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be resumed"):
        restore(folder, network, optimizer)
