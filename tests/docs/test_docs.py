"""The documentation is true: its commands run, its Python runs, its links lead somewhere."""

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from openglm.cli.main import _run

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md")])
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
RUN_IN_FULL = (
    "README.md",
    "docs/fill.md",
    "docs/engine.md",
    "docs/train.md",
    "docs/finetune.md",
    "docs/checkpoints.md",
    "docs/download.md",
    "docs/gguf.md",
    "docs/memory.md",
    "docs/quantize.md",
    "docs/sampling.md",
)
RUN_COMMANDS = (*RUN_IN_FULL, "docs/serving.md")
"""The Python of docs/serving.md needs a server: test_serving.py."""


def _blocks(language: str, pages: tuple[str, ...] = RUN_IN_FULL) -> list[tuple[str, str]]:
    return [
        (name, code)
        for name in pages
        for kind, code in BLOCK.findall((ROOT / name).read_text(encoding="utf-8"))
        if kind == language
    ]


@pytest.mark.parametrize(("page", "code"), _blocks("bash", RUN_COMMANDS))
def test_commands_run(
    page: str, code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A command that a page shows must work as it stands (blocks marked `sh` need own files)."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))
    for line in code.strip().splitlines():
        words = shlex.split(line.replace("runs/tiny", str(tmp_path / "tiny")))
        assert words[0] == "glm", f"{page}: {line}"
        if "<" in words:
            file = ROOT / words[words.index("<") + 1]
            words = words[: words.index("<")]
            monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text(encoding="utf-8")))
        assert _run(words[1:], False) == 0, line


@pytest.mark.parametrize(("page", "code"), _blocks("python"))
def test_python_runs(page: str, code: str) -> None:
    """Example code is copied by users."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    """A dead link ends a reader's visit."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_both_readmes_say_the_same() -> None:
    """The Chinese page must not fall behind: same sections, same code, same tables."""
    english, chinese = (
        (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")
    )
    for pattern in (r"^#+ ", r"^\|", r"^!\[", r"^```"):
        counts = [len(re.findall(pattern, text, re.MULTILINE)) for text in (english, chinese)]
        assert counts[0] == counts[1], pattern
    runnable = [
        [code for kind, code in BLOCK.findall(text) if kind in ("bash", "python")]
        for text in (english, chinese)
    ]
    assert runnable[0] == runnable[1]


def test_readme_is_short() -> None:
    """A README over 250 lines is a manual."""
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 250


def test_no_trace_of_a_build_machine() -> None:
    """Paths of somebody's machine tell users nothing and break for them."""
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(root|work|home/\w+)/", page.read_text(encoding="utf-8"))
