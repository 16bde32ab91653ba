"""Whether kernels written in Triton are used, and if not, why.

`OPENGLM_KERNELS=reference` asks for plain torch here as on a CPU.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch

from openglm.kernels.cpu import REFERENCE, VARIABLE

SMALLEST_TILE = 16
"""Rows of a product on tensor cores; smaller groups of heads are filled up."""


def takes(width: int) -> bool:
    """Whether attention has heads of this width: a power of two from 16 on, as tiles are."""
    return width >= SMALLEST_TILE and width & (width - 1) == 0


def is_interpreted() -> bool:
    """Whether Triton's own switch asks for its interpreter, which runs kernels on the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def missing(device: torch.device) -> str:
    """Why no Triton kernel is used on `device`, or "" if they are."""
    if os.environ.get(VARIABLE) == REFERENCE:
        return f"{VARIABLE}={REFERENCE} asks for plain torch"
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        return "Triton is not installed"
    if device.type != "cuda" and not is_interpreted():
        return f"Triton has no kernels for the device {device.type}"
    return ""
