"""Benchmarks at the smallest size: that they run, and count what they say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers_models import NETWORKS, random_model, tiny_config

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def speculation(monkeypatch):
    """The script; benchmarks are run from the root, and are no part of the package."""
    monkeypatch.setattr(sys, "path", [str(REPOSITORY), *sys.path])
    from benchmarks import speculation

    monkeypatch.setattr(speculation, "REPEATS", 1)
    return speculation


@pytest.fixture(scope="module")
def networks():
    """A model and a smaller one, with room for the tokens of mini."""
    sizes = {"vocab_size": 12_800, "max_position_embeddings": 512, "num_layers": 2}
    models = [tiny_config(**NETWORKS["chatglm2"], **sizes | {"num_layers": n}) for n in (2, 1)]
    return [random_model(config) for config in models]


def test_texts_to_guess_at(speculation, networks):
    """A text is too short for what is written of it, or guesses in it are not counted."""
    texts = speculation.workloads()
    assert list(texts) == ["quotation", "code edit", "summary", "chat", "free text"]
    found = {kind: speculation.looked_up(networks[0], text) for kind, text in texts.items()}
    steps = {kind: result["tokens_per_step"] for kind, result in found.items()}
    # The first guess is one token, and widths double.
    assert steps["quotation"] > 4
    assert steps["code edit"] > 2
    assert steps["summary"] > 1.2
    assert steps["chat"] > 1.1
    free = found["free text"]
    assert 0 < free["drafted_tokens"] - free["accepted_tokens"] <= 4


def test_draft_models_that_are_told_how_often_to_be_right(speculation, networks):
    """Guesses that are made to be right are thrown away, or the share is another."""
    model, draft = networks
    found = speculation.drafted(model, draft, speculation.workloads()["free text"])
    assert list(found) == ["90% right", "75% right", "60% right", "0% right"]
    steps = [result["tokens_per_step"] for result in found.values()]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.5
    assert steps[-1] == 1
    assert found["0% right"]["accepted_tokens"] == 0
    assert found["0% right"]["drafted_tokens"] <= 4
