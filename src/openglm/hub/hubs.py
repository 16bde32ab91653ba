"""The hubs by their names."""

from __future__ import annotations

from collections.abc import Callable

from openglm.errors import DownloadError
from openglm.hub.huggingface import HuggingFace
from openglm.hub.listing import Hub
from openglm.hub.modelscope import ModelScope
from openglm.hub.target import HUGGINGFACE, MODELSCOPE, Target

KINDS: dict[str, Callable[[str | None], Hub]] = {HUGGINGFACE: HuggingFace, MODELSCOPE: ModelScope}


def open_hub(target: Target, endpoint: str | None = None) -> Hub:
    """The hub of a target.

    Args:
        target: see `openglm.hub.target.find_target`.
        endpoint: address of a mirror; None for the usual one.

    Raises:
        DownloadError: no hub has it.
        UsageError: the address is none.
    """
    if not target.hub:
        raise DownloadError(f"{target.title} is on no hub", hint=target.by_hand)
    return KINDS[target.hub](endpoint)
