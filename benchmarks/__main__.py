"""Runs every benchmark: `make bench`, or `python -m benchmarks [NAME ...]`."""

import importlib
import sys

from benchmarks import record

NAMES = (
    "blank_infilling",
    "attention_cpu",
    "startup",
    "train_mini",
    "decode_mini",
    "full_size",
)

for name in sys.argv[1:] or NAMES:
    if name not in NAMES:
        sys.exit(f"unknown benchmark {name}; known: {', '.join(NAMES)}")
    record.write(name, importlib.import_module(f"benchmarks.{name}").measure())
