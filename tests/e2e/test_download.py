"""`glm download` as a user runs it, against a local hub."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import openglm
from helpers_hub import COMMIT, HubServer, Repository
from helpers_models import tiny_config, write_checkpoint
from openglm.cli.main import _run
from openglm.home import models
from openglm.tokenizers.mini import MiniTokenizer

NAME = "zai-org/glm-large-chinese"
WEIGHTS = "model.safetensors"


@pytest.fixture
def server(
    hub_server: HubServer, tmp_path: Path, mini: MiniTokenizer, monkeypatch: pytest.MonkeyPatch
) -> HubServer:
    """Has a tiny model with a tokenizer, under the name of a preset and under another."""
    folder = tmp_path / "source"
    vocabulary = max(mini.vocab_size, 400)
    write_checkpoint(folder, "hf", tiny_config(vocab_size=vocabulary), tokenizer=mini)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    files |= {"modeling_glm.py": b"raise SystemExit", "MODEL_LICENSE": b"terms"}
    for name in (NAME, "org/own", "ZhipuAI/glm-large-chinese"):
        hub_server.repositories[name] = Repository(files)
    monkeypatch.setenv("HF_ENDPOINT", hub_server.endpoint)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub_server.endpoint)
    return hub_server


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["glm-large-chinese"], ["glm-large-chinese", "THUDM/glm-large-chinese", NAME]),
        (["THUDM/glm-large-chinese"], ["large_chinese"]),
        (["glm-large-chinese", "--hub", "modelscope"], ["ZhipuAI/glm-large-chinese"]),
        (["org/own"], ["org/own"]),
        (["org/own", "--hub", "modelscope"], ["org/own"]),
    ],
)
def test_a_downloaded_model_is_loaded_by_its_name(
    arguments: list[str], names: list[str], server: HubServer
) -> None:
    """The files are there, and nothing finds them."""
    assert _run(["download", *arguments], False) == 0
    for name in names:
        model = openglm.load(name)
        assert model.generate("the cat", max_tokens=2).token_ids


def test_what_is_shown_before_the_first_byte(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user learns of the terms after 12 GB, if at all."""
    assert _run(["download", "glm-large-chinese"], False) == 0
    shown = capsys.readouterr().out
    assert "licence: MIT (GLM repository" in shown
    assert "hub says: other" in shown
    assert f"from: {server.endpoint}/{NAME} at {COMMIT}" in shown
    assert "modeling_glm.py (Python code, which openglm never runs" in shown
    size = len(server.repositories[NAME].files[WEIGHTS])
    assert f"{size / 1024:.1f} KiB  {WEIGHTS}" in shown
    assert " free" in shown
    assert "downloaded and checked" in shown
    assert shown.index("licence") < shown.index("downloaded and checked")
    assert _run(["download", "glm-large-chinese"], False) == 0
    again = capsys.readouterr().out
    assert "already here" in again
    assert "licence: MIT" in again


def test_json(server: HubServer, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A script cannot tell what was fetched, or the bar is mixed with the answer."""
    assert _run(["download", "org/own", "--json"], False) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["status"] == "downloaded"
    assert found["folder"] == str(tmp_path / "home" / "models" / "org--own")
    assert (found["revision"], found["licence"], found["checked"]) == (COMMIT, "other", True)
    assert found["files"][WEIGHTS]["digest"].startswith("sha256:")
    assert found["brought_bytes"] == sum(entry["size"] for entry in found["files"].values())


def test_from_a_folder(server: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A machine without a network cannot get a model by its name."""
    source = Path(os.environ["OPENGLM_HOME"]).parent / "source"
    assert _run(["download", "glm-large-chinese", "--from", str(source), "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "imported"
    assert not server.log
    assert openglm.load("glm-large-chinese").generate("the cat", max_tokens=2).token_ids
    assert _run(["download", "someone/own", "--from", str(source), "--json"], False) == 0
    for name in ("glm-large-chinese", "someone/own"):
        capsys.readouterr()
        for verb in ("info", "plan"):
            assert _run([verb, name, "--json"], False) == 0
        assert openglm.load(name).config.num_layers < 24  # of the folder, not of the preset


def test_an_imported_model_is_repaired(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A damaged model that came from a folder can only be removed by hand."""
    source = Path(os.environ["OPENGLM_HOME"]).parent / "source"
    assert _run(["download", "someone/own", "--from", str(source)], False) == 0
    weights = models() / "someone--own" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-4] + b"oops")
    assert _run(["download", "someone/own", "--verify"], False) == 10
    assert f"--from {source}" in capsys.readouterr().err
    assert _run(["download", "someone/own", "--from", str(source), "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "imported"
    assert weights.read_bytes() == content
    weights.write_bytes(content[:-4] + b"oops")
    assert _run(["download", "someone/own", "--from", str(source), "--verify"], False) == 0
    assert weights.read_bytes() == content


def test_other_files_than_the_name_says(
    server: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model is imported under the name of another one, and nobody is told."""
    source = Path(os.environ["OPENGLM_HOME"]).parent / "source"
    assert _run(["download", "chatglm3-6b", "--from", str(source)], False) == 0
    assert "chatglm3-6b has 6,243,584,000" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["glm-130b"], 10, "on no hub"),
        (["org/nothing"], 10, "does not exist"),
        (["org/own", "--endpoint", "http://127.0.0.1:9"], 10, "cannot be reached"),
        (["org/own", "--hub", "github"], 2, "unknown hub"),
        (["org/own", "--from", "x", "--revision", "main"], 2, "no meaning with --from"),
        (["mini"], 2, "built in"),
        (["../x"], 3, "neither a known model nor a repository"),
    ],
)
def test_errors_are_one_line_with_a_hint(
    arguments: list[str],
    code: int,
    words: str,
    server: HubServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A person must see what was wrong and what to do, not a traceback."""
    assert _run(["download", *arguments], False) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert said.count("\n") <= 2


def test_a_full_disk(
    server: HubServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full after an hour."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert _run(["download", "org/own"], False) == 10
    said = capsys.readouterr()
    assert "1,000 are free" in said.err
    assert "OPENGLM_HOME" in said.err
    assert not server.requests(WEIGHTS)


def _start(server: HubServer) -> subprocess.Popen[bytes]:
    code = "from openglm.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "download", "org/own", "--endpoint", server.endpoint],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A suite that runs in the background ignores Ctrl-C, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_was_killed_is_continued_at_the_byte(
    how: signal.Signals, server: HubServer, tmp_path: Path
) -> None:
    """After a crash or Ctrl-C the model is fetched from the start, or half a folder is loaded."""
    content = server.repositories["org/own"].files[WEIGHTS]
    server.stall = len(content) // 2
    with _start(server) as process:
        partial = tmp_path / "home/models/.partial/org--own"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            parts = list(partial.glob(f"{WEIGHTS}.*.part"))
            if parts and parts[0].stat().st_size == server.stall:
                break
            time.sleep(0.01)
        second = _run(["download", "org/own"], False)  # while the first holds the lock
        process.send_signal(how)
        out, _ = process.communicate(timeout=20)
    assert second == 10
    assert process.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
    assert how == signal.SIGKILL or b"the same command goes on" in out
    assert not (tmp_path / "home/models/org--own").exists()
    server.stall = None
    assert _run(["download", "org/own"], False) == 0
    assert [r.start for r in server.requests(WEIGHTS)] == [0, len(content) // 2]
    assert (tmp_path / "home/models/org--own" / WEIGHTS).read_bytes() == content
