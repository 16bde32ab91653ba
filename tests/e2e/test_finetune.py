"""`glm finetune` from the outside: it learns, resumes exactly, and its results are models."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import openglm
from openglm.checkpoints import load_source, open_checkpoint
from openglm.cli.main import _run
from openglm.home import find_model
from openglm.train.metrics import read_metrics

GENERAL = "english_bits_per_byte"
GLM = [sys.executable, "-c", "from openglm.cli.main import main; main()"]
KILLS = {"lora": 3, "freeze": 1, "ptuning": 1}
COLOURS = {"sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red"}
RUN = """
[model]
name = "mini"
[data]
holdout = 0.0
[data.train]
path = "told.jsonl"
[data.validation]
path = "told.jsonl"
[lora]
dropout = 0.05
[train]
steps = 12
batch_size = 5
log_every = 1
checkpoint_every = 2
validate_every = 12
threads = 1
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with conversations and a configuration."""
    folder = tmp_path_factory.mktemp("told")
    lines = [
        {"instruction": f"What colour is {thing}?", "output": f"It is {colour}."}
        for thing, colour in COLOURS.items()
    ]
    (folder / "told.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "run.toml").write_text(RUN)
    return folder


def finetune(told: Path, run: Path, *options: str) -> int:
    words = ["finetune", str(told / "run.toml"), "--run", str(run), "--json", *options]
    return _run(words, False)


def losses(run: Path) -> list[tuple[str, int, float]]:
    rows = read_metrics(run / "metrics.jsonl")
    return [(row["kind"], row["step"], row.get("loss", row.get(GENERAL))) for row in rows]


@pytest.fixture(scope="module", params=["lora", "freeze", "ptuning"])
def straight(request: pytest.FixtureRequest, told: Path, tmp_path_factory: pytest.TempPathFactory):
    """A method, and a run with it that was never interrupted."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert finetune(told, run, "--method", request.param) == 0
    return request.param, run


def test_killed_at_any_moment_it_is_the_same_run(straight, told: Path, tmp_path: Path) -> None:
    """A killed run forgets, or goes on as another one."""
    method, expected = straight
    run, moments = tmp_path / "run", random.Random(1)
    command = [*GLM, "finetune", str(told / "run.toml"), "--run", str(run), "--json"]
    command += ["--method", method]
    for _ in range(KILLS[method]):
        resume = ["--resume"] if (run / "run.json").exists() else []
        with subprocess.Popen(
            [*command, *resume], stdout=subprocess.PIPE, text=True, env=os.environ
        ) as process:
            assert process.stdout is not None
            stop = moments.randint(1, 5)
            for number, _ in enumerate(process.stdout):
                if number >= stop:
                    process.send_signal(signal.SIGKILL)
                    break
    assert finetune(told, run, "--method", method, "--resume") == 0
    (name,) = (path.name for path in (expected / "model").glob("*.safetensors"))
    weights = [load_file(folder / "model" / name) for folder in (expected, run)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert losses(run) == losses(expected)


def test_it_learns(straight) -> None:
    """What is trained stays as it was."""
    _, run = straight
    rows = [loss for kind, _, loss in losses(run) if kind == "train"]
    assert rows[-1] < rows[0] - 0.5


def test_what_was_lost_is_told(straight) -> None:
    """The model forgets all that it knew, and nobody notices before its users."""
    found = {step: value for kind, step, value in losses(straight[1]) if kind == "general"}
    assert sorted(found) == [0, 12]
    assert found[0] == pytest.approx(1.89, abs=0.05)
    assert found[12] != found[0]


def test_the_result_is_a_model(straight) -> None:
    """An adapter can be used by those only who know what to put it beside."""
    method, run = straight
    model = openglm.load(run / "model")
    before = openglm.load("mini")
    text, answer = "What colour is grass? [gMASK]", ["It is green."]
    scores = [one.score(text, answer)[0].score for one in (before, model)]
    assert scores[1] > scores[0] + 1
    assert (run / "model" / "adapter_config.json").exists() == (method == "lora")
    assert (run / "model" / "config.json").exists() == (method == "freeze")


def test_all_weights(told: Path, tmp_path: Path) -> None:
    """The method "full" trains a part, or nothing."""
    assert finetune(told, tmp_path / "run", "--method", "full", "--train.steps", "2") == 0
    before, after = (
        load_source(open_checkpoint(folder), torch.float32, torch.device("cpu")).model
        for folder in (find_model("mini"), tmp_path / "run" / "model")
    )
    changed = dict(after.named_parameters())
    matrices = [(n, p) for n, p in before.named_parameters() if p.dim() == 2]
    assert all(not torch.equal(p, changed[n]) for n, p in matrices)


def test_beside_integers(told: Path, tmp_path: Path) -> None:
    """QLoRA needs another program, or its result fits no model."""
    run = tmp_path / "run"
    assert finetune(told, run, "--model.dtype", "int4-g32", "--train.steps", "12") == 0
    rows = [loss for kind, _, loss in losses(run) if kind == "train"]
    assert rows[-1] < rows[0] - 0.5
    text, answer = "What colour is grass? [gMASK]", ["It is green."]
    scores = [openglm.load(name).score(text, answer)[0].score for name in ("mini", run / "model")]
    assert scores[1] > scores[0] + 1


def test_models_that_are_stored_in_integers(told: Path, tmp_path: Path, capsys) -> None:
    """A run ends in an adapter that can be put beside nothing, or in a traceback."""
    stored = tmp_path / "stored"
    assert _run(["quantize", "mini", str(stored), "--bits", "4", "--no-eval"], False) == 0
    for method, message in (("lora", "stored in integers"), ("full", "trains the weights")):
        words = ("--model.name", str(stored), "--method", method)
        assert finetune(told, tmp_path / method, *words) != 0
        assert message in " ".join(capsys.readouterr().err.split())


def test_another_base_is_another_run(told: Path, tmp_path: Path, capsys) -> None:
    """The base is exchanged between two starts, and the run goes on beside the new one."""
    run, base = tmp_path / "run", tmp_path / "base"
    shutil.copytree(find_model("mini"), base)
    words = ("--model.name", str(base), "--train.steps", "2", "--train.checkpoint_every", "1")
    assert finetune(told, run, *words) == 0
    path = base / "model.safetensors"
    tensors = load_file(path)
    name = next(n for n, tensor in tensors.items() if tensor.dim() == 2)
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, path)
    assert finetune(told, run, *words, "--resume") != 0
    assert "was started on other text" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "adapter"], "is not one of full, freeze, lora, ptuning"),
        (["--method", "full", "--model.dtype", "int4"], "trains the weights themselves"),
        (["--optimizer.learning_rate", "0.5"], "out of what makes sense"),
        (["--lora.targets", '["wq"]'], "no layers 'wq'"),
        (["--model.dtype", "int4-g32+embeddings"], "stay floats"),
        (["--model.dtype", "int5"], "is not known"),
        (["--freeze.layers", "99", "--method", "freeze"], "this model has"),
        (["--train.sequence_length", "32", "--data.train.path", "none"], "no file"),
        (["--train.epochs", "0"], "must be above 0"),
        (["--lora.rank", "0"], "at least 1"),
    ],
)
def test_settings_that_cannot_be(told: Path, tmp_path: Path, options, message, capsys) -> None:
    """A wrong setting is found after an hour, or in a traceback."""
    assert finetune(told, tmp_path / "run", *options) != 0
    shown = " ".join(capsys.readouterr().err.split())
    assert message in shown
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_look_at_the_data(told: Path, tmp_path: Path, capsys) -> None:
    """Nobody sees what is learned before it is."""
    words = ["finetune", str(told / "run.toml"), "--run", str(tmp_path / "run"), "--preview", "2"]
    assert _run(words, False) == 0
    shown = capsys.readouterr().out
    assert "5 examples" in shown
    assert "What colour is sky?" in shown
    assert not (tmp_path / "run").exists()
