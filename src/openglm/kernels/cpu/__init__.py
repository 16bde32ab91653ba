"""Compiled CPU kernels: whether they are there, and why not.

They are built with the package where a C++ compiler is (CMakeLists.txt); without them everything
runs in plain torch, slower. `OPENGLM_KERNELS=reference` asks for plain torch, and
`OPENGLM_KERNELS=avx2` for one of the instruction sets, an error where it cannot be had.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from openglm.errors import KernelUnavailable

VARIABLE = "OPENGLM_KERNELS"
REFERENCE = "reference"
NATIVE = "_native"


@cache
def module() -> ModuleType | None:
    """The compiled module, with the instruction set and the number of threads chosen; or None.

    Raises:
        KernelUnavailable: `OPENGLM_KERNELS` names what cannot be had.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == REFERENCE:
        return None
    try:
        built = _built()
    except ImportError:
        built = None
    found = [] if built is None else built.variants()
    if wanted and wanted not in found:
        raise KernelUnavailable(
            f"{VARIABLE}={wanted} cannot be had: {why_not() or f'this machine has {found}'}",
            hint=f"one of {', '.join([*found, REFERENCE])}, or leave the variable away",
        )
    if built is None or not found:
        return None
    if wanted:
        built.use(wanted)
    from torch import get_num_threads  # here: `glm plan` asks without waiting for torch

    built.set_num_threads(get_num_threads())
    return built


def why_not() -> str | None:
    """Why the kernels are not used, in words; None if they are."""
    if os.environ.get(VARIABLE) == REFERENCE:
        return f"{VARIABLE}={REFERENCE}"
    try:
        built = _built()
    except ImportError as error:
        return f"they cannot be loaded: {error}"
    if built is None:
        return "they were not built: there was no C++ compiler when openglm was installed"
    if not built.variants():
        return "this processor has neither AVX2 nor the dot products of ARMv8.2"
    return None


def _built() -> ModuleType | None:
    """The module; None if there is none, `ImportError` if it does not suit this machine."""
    try:
        return import_module(f"{__name__}.{NATIVE}")
    except ModuleNotFoundError:
        return None
