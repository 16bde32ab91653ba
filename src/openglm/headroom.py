"""Whether a model fits into the memory that is left, by arithmetic, before its weights are read.

Without that the system ends the process in the middle of loading, or its neighbours. What is
refused is what cannot work: weights, and what is computed with them, in more memory than there is.
A cache that would not fit is a warning, since a short text needs little of it.
"""

from __future__ import annotations

import os

import torch

from openglm.config import ModelConfig
from openglm.errors import NotEnoughMemory
from openglm.kernels.cpu import why_not
from openglm.log import logger
from openglm.memory import WIDTHS
from openglm.planning import DEFAULT_CONTEXT, plan_inference
from openglm.process import available_bytes
from openglm.scheme import Scheme, find_scheme

VARIABLE, OFF = "OPENGLM_MEMORY_CHECK", "off"
SHORT = 32
"""Tokens that a model must have room for, to be of use."""
SMALLER = ("int8", "int4")
"""What is proposed, the more exact first."""
LIBRARIES, CACHE = "libraries", "keys and values"
"""Parts of a plan. The first are there already; the second have their own size in a server."""
GB = 1e9


def free_bytes(place: torch.device) -> float | None:
    """What is free on a device; None where nobody says, or `OPENGLM_MEMORY_CHECK=off`."""
    if os.environ.get(VARIABLE) == OFF:
        return None
    return torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_bytes()


def dtype_name(dtype: torch.dtype, scheme: Scheme | None) -> str:
    """How arithmetic names weights of a dtype, or those that a scheme has quantized."""
    name = str(dtype).removeprefix("torch.")
    return scheme.name if scheme is not None else name if name in WIDTHS else "float32"


def needed_bytes(
    config: ModelConfig, dtype: str, place: torch.device, context: int, *without: str
) -> int:
    """What a model takes that is not loaded yet.

    Args:
        config: the architecture.
        dtype: of the weights in memory, or the name of a `Scheme`.
        place: where it will be.
        context: tokens of a text, at most what the model has.
        without: names of further parts that do not count.
    """
    on_cpu = place.type == "cpu"
    plan = plan_inference(
        config,
        dtype,
        min(context, config.max_position_embeddings),
        device="cpu" if on_cpu else "gpu",
        is_compiled=not on_cpu or why_not() is None,
    )
    return sum(part.bytes for part in plan.parts if part.name not in (LIBRARIES, *without))


def check_memory(name: str, config: ModelConfig, dtype: str, place: torch.device) -> None:
    """Refuses a model that does not fit, and warns of one that leaves no room for a long text.

    Args:
        name: of the model, for the message.
        config: its architecture.
        dtype: see `needed_bytes`.
        place: where it shall be.

    Raises:
        NotEnoughMemory: it does not fit.
    """
    free = free_bytes(place)
    if free is None:
        return
    where = "this machine" if place.type == "cpu" else str(place)
    needed = needed_bytes(config, dtype, place, SHORT)
    if needed > free:
        raise NotEnoughMemory(
            f"{name} in {dtype} needs {needed / GB:.1f} GB; {free / GB:.1f} GB of {where} are free",
            hint=f"{_way_out(config, dtype, place, free)}; glm plan shows the arithmetic, "
            f"{VARIABLE}={OFF} tries all the same",
        )
    context = min(DEFAULT_CONTEXT, config.max_position_embeddings)
    whole = needed_bytes(config, dtype, place, context)
    if whole > free:
        logger.warning(
            "%s in %s needs %.1f GB for a text of %d tokens, and %.1f GB of %s are free: long "
            "texts may end the process",
            *(name, dtype, whole / GB, context, free / GB, where),
        )


def _way_out(config: ModelConfig, dtype: str, place: torch.device, free: float) -> str:
    """The most exact smaller dtype that fits."""
    for smaller in SMALLER if find_scheme(dtype) is None else ():
        needed = needed_bytes(config, smaller, place, SHORT)
        if needed <= free:
            return f"dtype {smaller} needs {needed / GB:.1f} GB"
    return "free some memory, or take a smaller model or another device"
