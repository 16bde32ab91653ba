"""Starting from a checkpoint, recipes that extend others, and limits of run settings."""

import dataclasses
from pathlib import Path

import pytest
import torch

from openglm.checkpoints import save_checkpoint
from openglm.config import ModelConfig
from openglm.errors import ConfigError
from openglm.model import build, initialize
from openglm.settings import read_toml_with_base
from openglm.train.config import OptimizerConfig, TrainConfig, load_run_config
from openglm.train.pretraining import Pretraining

MODEL = ModelConfig(
    vocab_size=320,
    hidden_size=16,
    num_layers=1,
    num_attention_heads=2,
    max_position_embeddings=64,
    intermediate_size=64,
)
RUN = """
[model]
vocab_size = 320
hidden_size = 16
num_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
hidden_dropout = 0.0
[tokenizer]
kind = "mini"
path = "tokenizer.model"
[train]
steps = 1
sequence_length = 32
initial = "start"
[[data.sources]]
name = "text"
path = "text.txt"
"""


@pytest.fixture
def run(tmp_path: Path, mini) -> Path:
    """A run configuration with text, tokenizer and a checkpoint to start from."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"the cat {n}." for n in range(50)))
    for path in mini.files().values():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "run.toml").write_text(
        RUN.replace("vocab_size = 320", f"vocab_size = {mini.vocab_size}")
    )
    return tmp_path


def write_start(folder: Path, config: ModelConfig) -> dict[str, torch.Tensor]:
    model = build(config, "cpu")
    initialize(model, 7)
    weights = {name: parameter.data for name, parameter in model.named_parameters()}
    save_checkpoint(folder, config, weights, "hf")
    return weights


def test_a_run_starts_from_the_weights_of_a_checkpoint(run: Path, mini) -> None:
    """Continued pretraining would silently start from nothing."""
    config = dataclasses.replace(MODEL, vocab_size=mini.vocab_size, activation="gelu_tanh")
    weights = write_start(run / "start", config)
    task = Pretraining(load_run_config(run / "run.toml"), run / "cache")
    started = dict(task.model.named_parameters())
    assert all(torch.equal(weights[name], started[name]) for name in weights)
    assert all(parameter.requires_grad for parameter in started.values())


def test_a_checkpoint_of_another_network_is_refused(run: Path, mini) -> None:
    """The user must learn which setting differs, not get a list of tensors."""
    other = dataclasses.replace(MODEL, vocab_size=mini.vocab_size, num_layers=2)
    write_start(run / "start", other)
    with pytest.raises(ConfigError, match="num_layers differ"):
        Pretraining(load_run_config(run / "run.toml"), run / "cache")


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    """A phase that names one setting would lose all the others of its table."""
    (tmp_path / "base.toml").write_text("a = 1\n[t]\nx = 1\ny = [1, 2]\n")
    (tmp_path / "more.toml").write_text('extends = "base.toml"\n[t]\ny = [3]\n')
    found = read_toml_with_base(tmp_path / "more.toml")
    assert found == {"a": 1, "t": {"x": 1, "y": [3]}}


@pytest.mark.parametrize("base", ["b.toml", "a.toml", "../a.toml", "missing.toml"])
def test_extends_in_a_circle_or_elsewhere_is_refused(base: str, tmp_path: Path) -> None:
    """A circle would end in a traceback; another folder would make paths mean other files."""
    (tmp_path / "a.toml").write_text('extends = "b.toml"\n')
    (tmp_path / "b.toml").write_text(f'extends = "{base}"\n')
    with pytest.raises(ConfigError):
        read_toml_with_base(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (OptimizerConfig, {"learning_rate": float("nan")}),
        (OptimizerConfig, {"learning_rate": float("inf")}),
        (OptimizerConfig, {"beta2": 1.0}),
        (OptimizerConfig, {"weight_decay": -0.1}),
        (TrainConfig, {"steps": 1, "validation_batches": 0}),
        (TrainConfig, {"steps": 1, "label_smoothing": 1.0}),
        (TrainConfig, {"steps": 0}),
    ],
)
def test_impossible_settings_are_named(make: type, options: dict[str, float]) -> None:
    """A run would fail, or learn nothing, hours after it was started."""
    with pytest.raises(ConfigError, match=list(options)[-1]):
        make(**options)
