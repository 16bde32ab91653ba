"""Claim: quantized ChatGLM2-6B on a CPU decodes at the memory's pace, and faster than llama.cpp.

The weights are random, of the real shapes; prompts are random tokens. Every case runs in a process
of its own, ours and the peer's in turn. The peer runs where llama-cpp-python is installed, in this
environment or in that of the interpreter OPENGLM_PEER_PYTHON; files are kept in OPENGLM_PEERS.
Its INT4 file is Q4_0 (4.5 bits per weight) with a Q8_0 head (8.5). Ours is 4.125 bits in groups of
128, head included, and 4.5 in groups of 32. What either costs in quality is told by `quality`.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from openglm.checkpoints.gguf import export_gguf
from openglm.checkpoints.random import RandomQuantizedWeights, RandomWeights
from openglm.checkpoints.save import save_checkpoint
from openglm.home import home
from openglm.kernels.cpu import module
from openglm.registry import preset
from openglm.scheme import find_scheme

MODEL = "chatglm2-6b"
INT4, SMALL_GROUPS, INT8 = (
    f"{name}+embeddings+head" for name in ("int4-g128", "int4-g32", "int8-g128")
)
PEERS = {INT4: "int4", INT8: "int8"}
SHORT, LONG, PROMPT, BATCHES = 32, 2048, 512, (8, 16)
NEW = 24
FOLDER = Path(os.environ.get("OPENGLM_PEERS", home() / "bench"))
PEER_PYTHON = os.environ.get("OPENGLM_PEER_PYTHON", sys.executable)


def measure() -> dict[str, Any]:
    """Every case of ours and of the peer, and their ratios."""
    native = module()
    peer = _peer_version()
    results = {}
    for dtype in (INT4, INT8):
        file = _gguf(PEERS[dtype]) if peer else None
        results[dtype] = {
            "decode": _compare(dtype, file, SHORT, NEW, 3),
            "decode_long": _compare(dtype, file, LONG, NEW, 1) if dtype == INT4 else None,
            "prefill": _compare(dtype, file, PROMPT, 1, 2),
            "batches": {size: _compare(dtype, file, SHORT, NEW, 1, size) for size in BATCHES}
            if dtype == INT4
            else None,
        }
    with neighbour():
        busy = _compare(INT4, _gguf(PEERS[INT4]) if peer else None, SHORT, NEW, 2)
    return {
        "model": f"{MODEL}, random weights",
        "kernels": None
        if native is None
        else f"{native.variant()}, {native.num_threads()} threads",
        "peer": peer,
        "results": results,
        "small_groups": ours_of(SMALL_GROUPS, SHORT, NEW, 3, 1),
        "busy_neighbour": busy,
        "first_token": _first_token(INT4),
    }


@contextmanager
def neighbour() -> Iterator[None]:
    """A process that keeps one core busy."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            os.sched_setaffinity(busy.pid, {0})
            yield
        finally:
            busy.kill()


def _compare(
    dtype: str, file: Path | None, prompt: int, new: int, repeats: int, size: int = 1
) -> dict[str, Any]:
    ours = ours_of(dtype, prompt, new, repeats, size)
    if file is None:
        return {"ours": ours}
    peer = _peer(file, size, prompt, new, repeats)
    names = ("decode_tokens_per_s", "prefill_tokens_per_s")[: 1 + (size == 1)]
    ratios = {name: ours[name] / peer[name] for name in names}
    return {"ours": ours, "llama_cpp": peer, "ratio": ratios}


def ours_of(dtype: str, prompt: int, new: int, repeats: int, size: int) -> dict[str, Any]:
    """Speed and memory of `size` sequences at once, by `glm bench`."""
    options = ["--random-weights", "--dtype", dtype, "--device", "cpu", "--json"]
    lengths = ["--prompt-tokens", prompt, "--new-tokens", new, "--repeats", repeats]
    batch = ["--batch", size] if size > 1 else []
    code = "from openglm.cli.main import main; main()"
    words = [sys.executable, "-c", code, "bench", MODEL, *options, *lengths, *batch]
    found = run(words)
    speed = found["decode_tokens_per_s"]["1"]
    return {
        "prefill_tokens_per_s": found["prefill_tokens_per_s"],
        "decode_tokens_per_s": found["decode_tokens_per_s"][str(size)],
        "alone_gb_per_s": found["decode_gb_per_s"],
        "memory_gb_per_s": found["memory_gb_per_s"],
        "share_of_bandwidth": found["decode_gb_per_s"] / found["memory_gb_per_s"],
        "weight_bytes": found["load"]["weight_bytes"],
        "peak_bytes": max(found["peak_bytes"], found["load"]["process_bytes"]["after"]),
        **({"alone_tokens_per_s": speed} if size > 1 else {}),
    }


def _peer(file: Path, size: int, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    script = Path(__file__).with_name("peer_llama_cpp.py")
    found = run([PEER_PYTHON, script, file, size, prompt, new, repeats])
    return {
        "prefill_tokens_per_s": size * prompt / found["read_s"],
        "decode_tokens_per_s": size / found["step_s"],
        "file_bytes": file.stat().st_size,
        "peak_bytes": found["peak_bytes"],
    }


def _first_token(dtype: str) -> dict[str, float]:
    """Seconds to the first token behind 8: of a process, files cold and warm, and once loaded."""
    folder = FOLDER / dtype
    config, scheme = preset(MODEL).model, find_scheme(dtype)
    assert scheme is not None
    if not folder.exists():
        weights = RandomQuantizedWeights(config, scheme, 0, torch.float16)
        save_checkpoint(folder, config, weights, "openglm")
    code = (
        "import time, openglm, torch\nfrom statistics import median\n"
        "from openglm.engine.reader import reader_for\n"
        f"net = openglm.load({str(folder)!r}, device='cpu').network\n"
        "ids = torch.arange(8)[None]\n"
        "def first():\n"
        "    start = time.perf_counter(); reader = reader_for(net)(net, ids[:, :7], 1, True)\n"
        "    reader.feed(ids[:, 7:], ids[:, 7:], ids[:, :1]).argmax()\n"
        "    return time.perf_counter() - start\n"
    )
    seconds = {}
    for state in ("cold", "warm", "warm"):
        for path in folder.iterdir() if state == "cold" else ():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code + "first()"], check=True)
        seconds[state] = time.perf_counter() - start
    again = code + "import json\nprint(json.dumps({'loaded': median(first() for _ in range(5))}))"
    return seconds | run([sys.executable, "-c", again])


def _gguf(dtype: str) -> Path:
    FOLDER.mkdir(parents=True, exist_ok=True)
    file = FOLDER / f"{MODEL}-{dtype}.gguf"
    if not file.exists():
        config = preset(MODEL).model
        export_gguf(file, config, RandomWeights(config, 0, torch.float16), dtype)
    return file


def _peer_version() -> str | None:
    code = "import llama_cpp; print(llama_cpp.__version__)"
    done = subprocess.run([PEER_PYTHON, "-c", code], capture_output=True, text=True, check=False)
    return f"llama-cpp-python {done.stdout.strip()}" if done.returncode == 0 else None


def run(words: list[Any]) -> dict[str, Any]:
    """The JSON that a command prints."""
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
