"""docs/serving.md is true: its Python runs against a server."""

import os
import subprocess
import sys

import pytest
from test_docs import BLOCK, ROOT

import openglm
from helpers_serve import serving

PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def served():
    with serving({"mini": openglm.load()}) as found:
        yield found


@pytest.mark.parametrize("code", [code for kind, code in BLOCK.findall(PAGE) if kind == "python"])
def test_clients_run(served, code):
    """Example code is copied by users."""
    address, key = served
    told = {"OPENAI_BASE_URL": f"{address}/v1", "OPENAI_API_KEY": key}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | told)
