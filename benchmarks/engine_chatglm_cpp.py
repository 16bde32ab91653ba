"""Claim: quantized ChatGLM2-6B decodes and reads faster than in chatglm.cpp.

Its package on the index is source code (0.4.2), and CMake 4 builds it only with
CMAKE_POLICY_VERSION_MINIMUM=3.5. OPENGLM_CHATGLM_PYTHON is an interpreter that has it; its files,
with random weights of the real shapes, are kept in OPENGLM_PEERS, and the vocabulary that belongs
into them comes from OPENGLM_SHARED. Ours and theirs run in turn, each in a process of its own.
"""

import os
from pathlib import Path
from typing import Any

from benchmarks.engine_cpu import FOLDER, INT4, INT8, MODEL, NEW, PROMPT, SHORT, ours_of, run

PYTHON = os.environ.get("OPENGLM_CHATGLM_PYTHON", "")
SHARED = Path(os.environ.get("OPENGLM_SHARED", Path(__file__).parents[2] / "shared"))
VOCABULARY = SHARED / "tokenizers" / "chatglm2_chatglm3_tokenizer.model"
KINDS = {INT4: "q4_0", INT8: "q8_0"}
CASES = {"decode": (SHORT, NEW, 3), "prefill": (PROMPT, 1, 2)}
"""Prompt, new tokens, and how often."""


def measure() -> dict[str, Any]:
    """Both widths, both ways."""
    if not PYTHON:
        raise SystemExit("OPENGLM_CHATGLM_PYTHON must name an interpreter that has chatglm-cpp")
    results = {
        dtype: {name: _compare(dtype, kind, *sizes) for name, sizes in CASES.items()}
        for dtype, kind in KINDS.items()
    }
    return {"model": f"{MODEL}, random weights", "peer": "chatglm-cpp 0.4.2", "results": results}


def _compare(dtype: str, kind: str, prompt: int, new: int, repeats: int) -> dict[str, Any]:
    file = FOLDER / f"{MODEL}-{kind}.bin"
    script = Path(__file__).with_name("peer_chatglm_cpp.py")
    ours = ours_of(dtype, prompt, new, repeats, 1)
    found = run([PYTHON, script, file, VOCABULARY, kind, prompt, new, repeats])
    theirs = {
        "prefill_tokens_per_s": prompt / found["read_s"],
        "decode_tokens_per_s": 1 / found["step_s"],
        "peak_bytes": found["peak_bytes"],
    }
    names = ("decode_tokens_per_s", "prefill_tokens_per_s")
    ratios = {name: ours[name] / theirs[name] for name in names}
    return {"ours": ours, "chatglm_cpp": theirs, "ratio": ratios}
