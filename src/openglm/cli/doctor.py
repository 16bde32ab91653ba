"""`glm doctor`: what this machine has, and what speed to expect from it."""

from __future__ import annotations

import platform
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say

EXTRAS = {
    "train": ("tensorboard", "matplotlib"),
    "gguf": ("gguf",),
    "grammar": ("xgrammar",),
    "hf": ("transformers", "peft"),
    "bench": ("transformers", "matplotlib"),
    "serve": (
        "fastapi",
        "uvicorn",
        "multipart",
        "prometheus_client",
        "jwt",
        "cryptography",
        "sqlalchemy",
        "alembic",
    ),
    "postgres": ("psycopg",),
}


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "doctor",
        help=say("Check this machine and installation.", "检查机器和安装，估计速度。"),
    )(doctor)


def doctor(json: options.Json = False) -> None:
    """Prints versions, devices, kernels, measured bandwidth and expected speed."""
    from openglm.cli.output import console, print_json

    facts = examine()
    if json:
        print_json(facts)
        return
    for section, values in facts.items():
        console.print(f"[bold]{section}[/]")
        for name, value in values.items():
            console.print(f"  [dim]{name}:[/] {escape(str(value))}")


def examine() -> dict[str, dict[str, Any]]:
    """All findings, by section."""
    import torch

    import openglm
    from openglm.benchmark import memory_bandwidth
    from openglm.home import EMBEDDED, home
    from openglm.kernels.attention import MAX_SCORE_ELEMENTS
    from openglm.train.loop import has_fast_bfloat16

    cpu = torch.device("cpu")
    weights = Path(str(files("openglm") / EMBEDDED)) / "model.safetensors"
    bandwidth = memory_bandwidth()
    return {
        "versions": {
            "openglm": openglm.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("torch", "safetensors", "tokenizers")},
        },
        "devices": {
            "cpu": f"{torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads",
            "bf16 matrix products on the cpu": "yes" if has_fast_bfloat16(cpu) else "no",
            "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none",
        },
        "kernels": {
            "attention": "torch's fused kernel; in bf16 on a cpu, plain matrix products up to "
            f"{MAX_SCORE_ELEMENTS:,} scores (2 to 4 times faster there)",
            "on the cpu": _cpu_kernels(),
            "on a gpu": _gpu_kernels(),
        },
        "speed": {
            "memory bandwidth": f"{bandwidth / 1e9:.1f} GB/s (measured, read)",
            "upper limit for mini": f"{bandwidth / (2 * weights.stat().st_size):,.0f} tokens/s "
            "in float32, if memory were all"
            if weights.is_file()
            else "mini is not installed",
        },
        "optional parts": {
            extra: "installed"
            if all(find_spec(name) for name in names)
            else f"missing: pip install '.[{extra}]'"
            for extra, names in EXTRAS.items()
        },
        "folders": {"home": str(home()), "mini": str(weights.parent)},
    }


def _cpu_kernels() -> str:
    """Instruction set and threads of the compiled kernels, or why there are none."""
    from openglm.kernels.cpu import module, why_not

    native = module()
    if native is None:
        return f"plain torch, several times slower: {why_not()}"
    return f"compiled for {native.variant()}, {native.num_threads()} threads"


def _gpu_kernels() -> str:
    """Which of them would be used, or why none is."""
    import torch

    from openglm.kernels.gpu.available import missing

    if not torch.cuda.is_available():
        return "none: torch sees no GPU"
    graphs = "steps as CUDA graphs"
    if why := missing(torch.device("cuda")):
        return f"{graphs}; quantized weights in plain torch: {why}"
    return f"{graphs}; Triton for quantized weights, cached keys and large prefix masks"


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
