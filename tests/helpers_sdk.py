"""Environments of their own for BigModel's official clients."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"zhipuai": ("zhipuai==2.1.5.20250825", "sniffio"), "zai": ("zai-sdk==0.2.3",)}
"""Their requirements exclude each other; zhipuai does not name sniffio, which it imports."""


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
