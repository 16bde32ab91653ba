"""`glm pretrain` from the outside: exact resume after a kill, watchdog, refusals, artefacts."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import openglm
from openglm.cli.main import _run
from openglm.errors import TrainingStopped
from openglm.train import checkpoint
from openglm.train.config import load_run_config
from openglm.train.loop import Trainer
from openglm.train.metrics import read_metrics
from openglm.train.pretraining import Pretraining
from openglm.train.watchdog import ZERO_STEPS, Watchdog

GLM = [sys.executable, "-c", "from openglm.cli.main import main; main()"]


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def _pretrain(corpus: Path, run: Path, *options: str) -> int:
    return _run(["pretrain", str(corpus / "tiny.toml"), "--run", str(run), *options], False)


@pytest.fixture(scope="module")
def straight(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("straight") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENGLM_HOME", str(run.parent / "home"))
        assert _pretrain(corpus, run, "--json") == 0
    return run


@pytest.mark.parametrize("kill_at_step", [1, 5, 9])
def test_resume_after_kill_is_bit_identical(
    corpus: Path, straight: Path, tmp_path: Path, kill_at_step: int
) -> None:
    """A killed run must lose at most the steps since its last checkpoint, and change nothing."""
    run = tmp_path / "run"
    command = [*GLM, "pretrain", str(corpus / "tiny.toml"), "--run", str(run), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("step", 0) >= kill_at_step:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert _pretrain(corpus, run, "--resume", "--json") == 0
    expected, found = _weights(straight), _weights(run)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    def losses(folder: Path) -> list[tuple[str, int, float]]:
        rows = read_metrics(folder / "metrics.jsonl")
        return [(row["kind"], row["step"], row["loss"]) for row in rows]

    assert losses(run) == losses(straight)


def test_a_kill_while_saving_leaves_the_previous_checkpoint(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A torn checkpoint must never be taken for a complete one."""
    config = load_run_config(corpus / "tiny.toml")
    trainer = Trainer(Pretraining(config, tmp_path / "cache"), tmp_path / "run")
    trainer.save()

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", die)
    trainer.step = 1
    with pytest.raises(KeyboardInterrupt):
        trainer.save()
    assert [step for step, _ in checkpoint.checkpoints(tmp_path / "run" / "checkpoints")] == [0]


def test_only_the_latest_checkpoints_are_kept(straight: Path) -> None:
    """Old checkpoints would fill the disk."""
    steps = [step for step, _ in checkpoint.checkpoints(straight / "checkpoints")]
    assert steps == [8, 12]


def test_training_lowers_the_held_out_loss(straight: Path) -> None:
    """A loop that does not learn is no training loop."""
    rows = [r for r in read_metrics(straight / "metrics.jsonl") if r["kind"] == "validation"]
    assert rows[-1]["loss"] < 5.7  # log(320) = 5.77 is chance
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_run_folder_is_complete_and_the_model_loads(straight: Path) -> None:
    """Settings, plot and model belong to the result; the model must work as it is."""
    record = json.loads((straight / "run.json").read_text())
    assert record["config"]["train"]["seed"] == 3
    assert (straight / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert any((straight / "tensorboard").iterdir())
    model = openglm.load(straight / "model")
    assert model.fill("the cat [MASK] the mat.", max_tokens=3).text.startswith("the cat")


def test_an_existing_run_is_never_overwritten(
    corpus: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Starting twice in one folder must not destroy the first run."""
    before = (straight / "metrics.jsonl").read_text()
    assert _pretrain(corpus, straight) == 3
    assert "--resume" in capsys.readouterr().err
    assert (straight / "metrics.jsonl").read_text() == before


def test_resume_with_other_settings_is_refused(
    corpus: Path, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run continued with another learning rate would be neither the one nor the other."""
    code = _pretrain(corpus, straight, "--resume", "--optimizer.learning_rate", "1e-4")
    assert code == 3
    assert "learning_rate" in capsys.readouterr().err


def test_resume_without_a_run_is_refused(corpus: Path, tmp_path: Path) -> None:
    """A mistyped run folder must not silently start from nothing."""
    assert _pretrain(corpus, tmp_path / "nothing", "--resume") == 3


def test_a_damaged_checkpoint_is_named(corpus: Path, straight: Path, tmp_path: Path) -> None:
    """The user must learn which folder to remove."""
    import shutil

    run = tmp_path / "run"
    shutil.copytree(straight, run)
    broken = run / "checkpoints" / "step-00000012" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:1000])
    assert _pretrain(corpus, run, "--resume") == 4


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--train.stepz", "3"], 3, "did you mean 'steps'"),
        (["--optimizer.learning_rate", "high"], 3, "learning_rate"),
        (["--train.sequence_length", "128"], 3, "max_position_embeddings"),
        (["--objective.token", "0.9"], 3, "must be 1"),
        (["--data.folder", "/nowhere"], 6, "/nowhere"),
        (["--tokenizer.kind", "klingon"], 5, "klingon"),
        (["--frobnicate"], 2, "--frobnicate"),
        (["--model.vocab_size", "100"], 3, "vocab_size"),
    ],
)
def test_bad_settings_have_clear_errors(
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    words: str,
) -> None:
    """Each wrong setting is named before anything is written."""
    assert _pretrain(corpus, tmp_path / "run", *options) == code
    assert words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_diverging_run_stops_with_an_explanation(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """NaN weights must never be saved, and the user must learn what to change."""
    run = tmp_path / "run"
    options = ("--optimizer.learning_rate", "1e18", "--train.checkpoint_every", "1")
    assert _pretrain(corpus, run, *options) == 8
    said = capsys.readouterr().err
    assert "learning_rate" in said
    assert "step" in said
    for _, path in checkpoint.checkpoints(run / "checkpoints"):
        weights = load_file(path / "model.safetensors")
        assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_loss_of_zero_stops_the_run() -> None:
    """A loss of exactly zero means that the targets are broken, not that the model is perfect."""
    watchdog = Watchdog()
    for step in range(1, ZERO_STEPS):
        watchdog.check(step, 0.0, 1.0, 1e-3)
    with pytest.raises(TrainingStopped, match="below"):
        watchdog.check(ZERO_STEPS, 0.0, 1.0, 1e-3)


def test_dropout_is_part_of_the_exact_path(corpus: Path, tmp_path: Path) -> None:
    """Dropout masks come from (seed, step), so two runs agree and another seed differs."""

    def final(seed: int, name: str) -> torch.Tensor:
        run = tmp_path / name
        options = ("--train.steps", "3", "--train.seed", str(seed), "--json")
        assert _pretrain(corpus, run, *options) == 0
        return _weights(run)["final_norm.weight"]

    assert torch.equal(final(1, "a"), final(1, "b"))
    assert not torch.equal(final(1, "c"), final(2, "d"))
