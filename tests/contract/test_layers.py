"""The layer rule: a module imports only its own folder and the layers below."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "src" / "openglm"
LAYERS = {
    "errors": 0,
    "log": 0,
    "config": 0,
    "settings": 0,
    "scheme": 0,
    "registry": 0,
    "home": 0,
    "memory": 0,
    "process": 0,
    "planning": 0,
    "hub": 1,
    "tokenizers": 1,
    "kernels": 1,
    "nn": 2,
    "model": 3,
    "checkpoints": 4,
    "chat": 4,
    "adapters": 4,
    "quant": 4,
    "compiled": 4,
    "data": 5,
    "headroom": 5,
    "engine": 5,
    "results": 5,
    "transcript": 6,
    "language_model": 6,
    "benchmark": 6,
    "loading": 6,
    "verification": 6,
    "quantize": 6,
    "train": 6,
    "attacks": 7,
    "serve": 7,
    "cli": 7,
    "hf": 7,
}
SIBLINGS = {
    # Modules of one layer that may import each other, and why.
    ("config", "errors"),
    ("settings", "errors"),
    ("registry", "config"),
    ("registry", "errors"),
    ("registry", "settings"),
    ("home", "errors"),
    ("scheme", "errors"),
    ("memory", "config"),
    ("memory", "errors"),
    ("memory", "scheme"),
    ("planning", "config"),
    ("planning", "errors"),
    ("planning", "memory"),
    ("home", "registry"),
    ("adapters", "checkpoints"),
    ("adapters", "quant"),  # gradients through integers
    ("checkpoints", "chat"),  # GGUF files hold the chat template
    ("checkpoints", "quant"),
    ("compiled", "quant"),
    ("language_model", "transcript"),
    ("loading", "language_model"),
    ("quantize", "benchmark"),
    ("train", "quantize"),  # the prose that no model has read
    ("cli", "attacks"),
    ("cli", "serve"),
    ("verification", "language_model"),
}
TORCH_FREE = (
    "errors",
    "log",
    "config",
    "settings",
    "scheme",
    "memory",
    "registry",
    "home",
    "hub",
    "tokenizers",
    "chat",
    "data",
)


def _imports(path: Path) -> set[str]:
    """Parts of openglm that a file imports, as names of LAYERS; `openglm` itself is ""."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "openglm" and len(parts) > 1 and parts[1] in LAYERS:
                found.add(parts[1])
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name[0] != "_")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_respect_the_layers(path: Path) -> None:
    """A lower layer that imports a higher one makes the parts impossible to understand alone."""
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    assert own in LAYERS, f"{path} belongs to no layer: add it to LAYERS"
    for other in _imports(path) - {own}:
        lower = LAYERS[other] < LAYERS[own]
        assert lower or (own, other) in SIBLINGS, f"{path} (layer {own}) imports {other}"


@pytest.mark.parametrize("part", TORCH_FREE)
def test_lower_layers_and_data_are_torch_free(part: str) -> None:
    """Torch in these parts would make `glm --help` slow and data workers heavy."""
    modules = [
        ".".join(("openglm", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        for path in FILES
        if path.relative_to(ROOT).parts[0].removesuffix(".py") == part
    ]
    code = f"import sys, importlib\nfor m in {modules}: importlib.import_module(m)\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "code",
    [
        "import openglm",
        "import openglm.cli.main as m; m._run(['--help'], False)",
    ],
)
def test_import_and_help_do_not_import_torch(code: str) -> None:
    """`import openglm` and `glm --help` must stay instant."""
    check = (
        code + "; import sys; assert 'torch' not in sys.modules; assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", check], check=True, stdout=subprocess.DEVNULL)


def test_no_file_is_too_long() -> None:
    """A file above 500 lines holds more than one concept."""
    long = [str(p) for p in ROOT.rglob("*.py") if len(p.read_text().splitlines()) > 500]
    assert not long
    assert len((ROOT / "model" / "transformer.py").read_text().splitlines()) <= 400


def test_generating_does_not_load_torchs_compiler() -> None:
    """The first token comes 2 seconds later, and the process takes 140 MB more."""
    code = "import openglm, sys; openglm.load('mini', device='cpu').generate('a', max_tokens=2)"
    code += "; assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
