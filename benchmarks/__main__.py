"""Runs every benchmark: `make bench`, or `python -m benchmarks [NAME ...]`; some need a GPU."""

import importlib
import sys

import torch

from benchmarks import record

NAMES = (
    "blank_infilling",
    "attention_cpu",
    "startup",
    "train_mini",
    "decode_mini",
    "full_size",
    "engine_cpu",
    "speculation",
    "agreement",
    "long_context",
    "prefill_bf16",
)
GPU_NAMES = ("gpu_decode",)
here = NAMES + GPU_NAMES if torch.cuda.is_available() else NAMES

for name in sys.argv[1:] or here:
    if name not in NAMES + GPU_NAMES:
        sys.exit(f"unknown benchmark {name}; known: {', '.join(NAMES + GPU_NAMES)}")
    record.write(name, importlib.import_module(f"benchmarks.{name}").measure())
