"""Claim: bfloat16 weights read a prompt at least 1.15 x as fast as in transformers.

Shapes of ChatGLM2-6B, cut to 2 of 28 layers so that both fit beside each other and a round takes a
minute; weights and prompts are random. Each side runs in processes of its own, in turn, and medians
of all passes are compared. Both round activations to bfloat16.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.record import alone, spread
from openglm.checkpoints import load_random
from openglm.compiled.transform import compiled
from openglm.engine.reader import PagedReader
from openglm.registry import preset

MODEL, LAYERS, PROMPT = "chatglm2-6b", 2, 512
ROUNDS, REPEATS = 3, 1


def measure() -> dict[str, Any]:
    """Tokens/s of both, and their ratio."""
    seconds: dict[str, list[float]] = {"ours": [], "transformers": []}
    sizes = {}
    for _ in range(ROUNDS):
        for name, found in (
            ("ours", alone(read, MODEL, LAYERS, PROMPT, REPEATS)),
            ("transformers", _peer(MODEL, LAYERS, PROMPT, REPEATS)),
        ):
            seconds[name] += found["read_s"]
            sizes[name] = found["parameters"]
    assert sizes["ours"] == sizes["transformers"], sizes
    ours, peer = (median(seconds[name]) for name in ("ours", "transformers"))
    return {
        "model": f"{MODEL}, {LAYERS} layers, bfloat16, random weights",
        "parameters": sizes["ours"],
        "prompt_tokens": PROMPT,
        "peer": f"transformers {_version()}",
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ours": {"prefill_tokens_per_s": PROMPT / ours},
        "transformers": {"prefill_tokens_per_s": PROMPT / peer},
        "ratio": peer / ours,
    }


def read(name: str, num_layers: int, prompt: int, repeats: int) -> dict[str, Any]:
    """Seconds to read each prompt, behind one that warms up, on the compiled kernels."""
    config = dataclasses.replace(preset(name).model, num_layers=num_layers)
    network = compiled(load_random(config, torch.bfloat16), "bfloat16")
    generator = torch.Generator().manual_seed(0)
    times = []
    for _ in range(1 + repeats):
        ids = torch.randint(config.vocab_size, (1, prompt), generator=generator)
        last = torch.full((1, 1), prompt - 1)
        start = perf_counter()
        reader = PagedReader(network, ids[:, :-1], 1, is_causal=True)
        reader.feed(ids[:, -1:], last, torch.zeros_like(last))
        times.append(perf_counter() - start)
    return {"read_s": times[1:], "parameters": config.num_parameters}


def _peer(name: str, num_layers: int, prompt: int, repeats: int) -> dict[str, Any]:
    script = Path(__file__).with_name("peer_transformers.py")
    words = [sys.executable, script, name, num_layers, prompt, repeats]
    done = subprocess.run(list(map(str, words)), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _version() -> str:
    from importlib.metadata import version

    return version("transformers")
