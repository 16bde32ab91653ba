"""Claim: models of 6 to 13 billion parameters run here in INT4, in the memory that was planned.

The weights are random, of the real shapes. Each model runs in a process of its own. `int4` is the
official scheme, as in the released files: activations are not rounded, embeddings and head stay
in 16 bits.
"""

import json
import subprocess
import sys
from typing import Any

from openglm.benchmark import memory_bandwidth

GROUPS = "int4-g128+embeddings+head"
CASES = [
    ("chatglm-6b", "int4"),
    ("chatglm2-6b", "int4"),
    ("chatglm-6b", GROUPS),
    ("glm-4-9b", GROUPS),
    ("glm-10b", GROUPS),
    ("codegeex-13b", GROUPS),
]
PROMPT, NEW = 64, 8


def measure() -> dict[str, Any]:
    """Memory and speed of each case, and the plan for it."""
    return {
        "prompt_tokens": PROMPT,
        "new_tokens": NEW,
        "memory_bandwidth_gb_per_s": memory_bandwidth() / 1e9,
        "results": {f"{name} {dtype}": _case(name, dtype) for name, dtype in CASES},
    }


def _case(name: str, dtype: str) -> dict[str, Any]:
    size = ("--prompt-tokens", str(PROMPT), "--new-tokens", str(NEW), "--repeats", "1")
    run = _glm("bench", name, "--random-weights", "--dtype", dtype, "--device", "cpu", *size)
    plan = _glm("plan", name, "--dtype", dtype, "--context", str(PROMPT + NEW))
    process = run["load"]["process_bytes"]
    return {
        "weight_bytes": run["load"]["weight_bytes"],
        "load_s": run["load"]["seconds"],
        "after_load_bytes": process["after"],
        "peak_of_load_above_it_bytes": process["peak"] - process["after"],
        "peak_bytes": run["peak_bytes"],
        "planned_bytes": plan["bytes_per_device"],
        "measured_to_planned": run["peak_bytes"] / plan["bytes_per_device"],
        "prefill_tokens_per_s": run["prefill_tokens_per_s"],
        "decode_tokens_per_s": run["decode_tokens_per_s"]["1"],
        "decode_gb_per_s": run["decode_gb_per_s"],
    }


def _glm(*arguments: str) -> dict[str, Any]:
    code = "from openglm.cli.main import main; main()"
    command = [sys.executable, "-c", code, *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found
