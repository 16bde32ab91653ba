"""The official clients of BigModel, each in an environment of its own, against a real server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers_serve import scripted, serving

ROOT = Path(__file__).parents[2]
PACKAGES = {"zhipuai": ("zhipuai==2.1.5.20250825", "sniffio"), "zai": ("zai-sdk==0.2.3",)}
"""Their requirements exclude each other; zhipuai does not name sniffio, which it imports."""


def script(conversation: str) -> str:
    question = conversation.rsplit("<|user|>", 1)[-1]
    if "weather" in question:
        return '\nget_weather\n{"city": "北京"}'.lstrip()
    if "separators" in question:
        return "\na\u2028b\u2029c\u0085d"
    return "\nHello, 你好👋!"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with serving({"glm-4": scripted(tmp_path_factory.mktemp("glm4"), script)}) as found:
        yield found


def python_with(sdk: str) -> Path:
    """The interpreter of an environment with one of the SDKs, made if it is not there."""
    folder = ROOT / f".venv-{sdk}"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "pytest", *PACKAGES[sdk]]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{sdk} cannot be installed here: {done.stderr[-200:]}")
        (folder / "ready").touch()
    return python


@pytest.mark.parametrize("sdk", PACKAGES)
def test_a_client(sdk, served):
    """Programs that were written for BigModel do not run, or get other answers."""
    address, key = served
    told = {"OPENGLM_SDK": sdk, "OPENGLM_URL": address, "OPENGLM_KEY": key}
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-c", os.devnull]
    program = ROOT / "tests" / "clients" / "bigmodel.py"
    done = subprocess.run(
        [python_with(sdk), "-m", "pytest", *options, program],
        env={**os.environ, **told, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
