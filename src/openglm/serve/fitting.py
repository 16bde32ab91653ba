"""Whether a model fits into the memory that is left, by arithmetic, before its weights are read."""

from __future__ import annotations

import torch

from openglm.checkpoints.source import open_checkpoint
from openglm.home import find_model
from openglm.kernels.cpu import why_not
from openglm.loading import pick_device
from openglm.memory import WIDTHS
from openglm.planning import plan_inference
from openglm.process import available_bytes
from openglm.serve.errors import LATER_SECONDS, ServeError

NOT_NEW = ("libraries", "keys and values")
"""Parts of a plan that do not count: those of this process are there, and an engine has a memory of
its own for the others."""


def check_fits(name: str, source: str, dtype: str, device: str, cache_bytes: int) -> None:
    """Checks that there is room for a model.

    What is free is what the system says. It counts memory once it is written to, so that of a cache
    which another model has not filled yet is free, too.

    Args:
        name: of the model, for the message.
        source: see `openglm.load`, as the next two.
        dtype: of its weights.
        device: where it shall be.
        cache_bytes: of keys and values.

    Raises:
        OpenGLMError: there is no such model, or it is damaged.
        ServeError: there is no room.
    """
    place = pick_device(device)
    needed = _planned_bytes(source, dtype, place) + cache_bytes
    free = torch.cuda.mem_get_info(place)[0] if place.type == "cuda" else available_bytes()
    if free is not None and needed > free:
        message = (
            f"{name!r} takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: "
            "unload another model, or give it fewer bits or a smaller cache"
        )
        raise ServeError("unavailable", message, "model", LATER_SECONDS)


def _planned_bytes(source: str, dtype: str, place: torch.device) -> int:
    """Weights and intermediate results."""
    on_cpu = place.type == "cpu"
    is_compiled = not on_cpu or why_not() is None
    checkpoint = open_checkpoint(find_model(source))
    stored = str(checkpoint.stored_dtype).removeprefix("torch.")
    if checkpoint.scheme is not None:
        kind = checkpoint.scheme.name
    elif dtype != "auto":
        kind = dtype
    else:
        kind = stored if is_compiled and stored in WIDTHS else "float32"
    plan = plan_inference(
        checkpoint.config, kind, device="cpu" if on_cpu else "gpu", is_compiled=is_compiled
    )
    return sum(part.bytes for part in plan.parts if part.name not in NOT_NEW)
