"""The page on transformers is true: its scripts run, on tiny folders of the names in them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from helpers_hf import write_byte_vocabulary, write_folder

PAGE = Path(__file__).parents[2] / "docs" / "transformers.md"
SCRIPTS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
OPTIONAL = ("peft", "trl", "lm_eval", "datasets")


@pytest.fixture(scope="module")
def byte_folder(tmp_path_factory) -> Path:
    """`THUDM/glm-4-9b-chat` with a vocabulary of bytes."""
    root = tmp_path_factory.mktemp("glm4")
    write_folder(root / "THUDM" / "glm-4-9b-chat", "chatglm3", vocab_size=288)
    write_byte_vocabulary(root / "THUDM" / "glm-4-9b-chat")
    return root


@pytest.fixture(scope="module")
def official_folder(tmp_path_factory, official_tokenizers) -> Path:
    """`THUDM/chatglm2-6b` with its own vocabulary."""
    root = tmp_path_factory.mktemp("chatglm2")
    write_folder(root / "THUDM" / "chatglm2-6b", "chatglm2", official_tokenizers)
    return root


# Warnings of the libraries about each other are not ours.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_scripts_run(script, request, monkeypatch):
    """Whoever copies a script from the page gets an error."""
    for package in OPTIONAL:
        if re.search(rf"^(?:import|from) {package}\b", script, re.M):
            pytest.importorskip(package)
    needed = "official_folder" if "chatglm2-6b" in script else "byte_folder"
    folder = request.getfixturevalue(needed)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    short = script.replace("history=[])", "history=[], max_length=48)").replace(
        "history=history)", "history=history, max_length=160)"
    )
    exec(compile(short, str(PAGE), "exec"), {"__name__": "page"})
    assert not list(folder.rglob("the_code_ran"))
    assert "openglm.hf" in sys.modules
