"""Runs every benchmark: `make bench`, or `python -m benchmarks [NAME ...]`; some need a GPU.

`report` rewrites RESULTS.md and its plot from the results that are there.
"""

import importlib
import sys

import torch

from benchmarks import record, report

NAMES = (
    "blank_infilling",
    "attention_cpu",
    "sampling_cpu",
    "startup",
    "train_mini",
    "finetune_lora",
    "decode_mini",
    "full_size",
    "engine_cpu",
    "speculation",
    "agreement",
    "quality",
    "long_context",
    "prefill_bf16",
    "serve_http",
    "serve_load",
)
GPU_NAMES = ("gpu_decode",)
PEER_NAMES = ("engine_chatglm_cpp",)
"""What must be named to be run: its peer has to be built first."""
REPORT = "report"
KNOWN = (*NAMES, *GPU_NAMES, *PEER_NAMES, REPORT)
here = NAMES + GPU_NAMES if torch.cuda.is_available() else NAMES

for name in sys.argv[1:] or (*here, REPORT):
    if name not in KNOWN:
        sys.exit(f"unknown benchmark {name}; known: {', '.join(KNOWN)}")
    if name == REPORT:
        report.write()
    else:
        record.write(name, importlib.import_module(f"benchmarks.{name}").measure())
