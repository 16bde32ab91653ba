"""`glm bench` and `glm plan` as users run them, and whether they agree."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from openglm import process
from openglm.cli.main import _run
from openglm.kernels.cpu import module
from openglm.memory import weight_bytes
from openglm.registry import preset


def glm(*arguments: str) -> dict:
    code = "from openglm.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("name", "dtype"), [("glm-410m", "float32"), ("glm-2b", "int4")])
def test_measured_memory_is_the_planned_one(name, dtype):
    """A plan that is wrong by more than 5 % sends people to buy memory, or not to."""
    asked = ("--prompt-tokens", "64", "--new-tokens", "2", "--repeats", "1", "--device", "cpu")
    found = glm("bench", name, "--random-weights", "--dtype", dtype, *asked)
    planned = glm("plan", name, "--dtype", dtype, "--context", "66")
    assert found["peak_bytes"] == pytest.approx(planned["bytes_per_device"], rel=0.05)
    weights = weight_bytes(preset(name).model, dtype, 4 if module() is None else 2)
    assert planned["parts"]["weights"] == weights
    # The kernels keep vectors (norms, biases, scales of rows) in float32.
    assert found["load"]["weight_bytes"] == pytest.approx(weights, rel=0.02)
    process = found["load"]["process_bytes"]
    # Drawing and quantizing weights must not need much more than they take in the end.
    assert process["peak"] < process["after"] + 1e9


def test_what_cannot_fit_is_refused(monkeypatch, capsys):
    """The system kills the process, or the neighbours, after a minute of loading."""
    monkeypatch.setattr(process, "available_bytes", lambda: 10**9)
    assert _run(["bench", "chatglm2-6b", "--random-weights", "--device", "cpu"], False) == 2
    assert "--dtype int4" in capsys.readouterr().err
