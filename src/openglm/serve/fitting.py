"""Whether a model and its cache fit into the memory that is left, before weights are read."""

from __future__ import annotations

import torch

from openglm.checkpoints.source import open_checkpoint
from openglm.headroom import CACHE, GB, dtype_name, free_bytes, needed_bytes
from openglm.home import find_model
from openglm.loading import dtype_of_weights, pick_device
from openglm.planning import DEFAULT_CONTEXT
from openglm.serve.errors import LATER_SECONDS, ServeError


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
    free = free_bytes(place)
    if free is not None and needed > free:
        message = (
            f"{name!r} takes {needed / GB:.1f} GB of memory, and {free / GB:.1f} GB are free: "
            "unload another model, or give it fewer bits or a smaller cache"
        )
        raise ServeError("unavailable", message, "model", LATER_SECONDS)


def _planned_bytes(source: str, dtype: str, place: torch.device) -> int:
    """Weights and intermediate results; the cache is asked for."""
    checkpoint = open_checkpoint(find_model(source))
    kind, scheme = dtype_of_weights(dtype, place)
    name = dtype_name(kind or checkpoint.stored_dtype, checkpoint.scheme or scheme)
    return needed_bytes(checkpoint.config, name, place, DEFAULT_CONTEXT, CACHE)
