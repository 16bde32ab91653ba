"""Where and how a result was measured, and writing it down."""

import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write(name: str, values: dict[str, Any]) -> Path:
    """Writes results/NAME_MACHINE_YYYY-MM.json and prints it; `values["gpu"]` names the machine."""
    today = datetime.datetime.now(datetime.UTC).date()
    gpu = values.get("gpu")
    machine = gpu or f"{_cpu()}-{os.cpu_count()}-cores"
    record = {
        "benchmark": name,
        "date": today.isoformat(),
        "hardware": ", ".join(
            ([gpu] if gpu else []) + [_cpu(), f"{os.cpu_count()} cores", platform.machine()]
        ),
        "commit": _commit(),
        "command": f"python -m benchmarks {name}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        **values,
    }
    RESULTS.mkdir(exist_ok=True)
    label = machine.lower().replace(" ", "-")
    path = RESULTS / f"{name}_{label}_{today:%Y-%m}.json"
    text = json.dumps(record, indent=2)
    path.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")
    return path


def seconds(work: Callable[[], object], repeats: int, warmup: int = 1) -> list[float]:
    """Wall time of each of `repeats` calls."""
    for _ in range(warmup):
        work()
    times = []
    for _ in range(repeats):
        start = perf_counter()
        work()
        times.append(perf_counter() - start)
    return times


def alone(work: Callable[..., Any], *arguments: Any) -> Any:
    """What `work` returns in a fresh process: its memory, threads and environment are its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as processes:
        return processes.submit(work, *arguments).result()


def spread(values: list[float]) -> dict[str, float]:
    """Minimum, median and maximum."""
    return {"min": min(values), "median": median(values), "max": max(values)}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


def _commit() -> str:
    here = Path(__file__).parent
    found = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or "unknown"


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
