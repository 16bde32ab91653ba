"""What goes to a replica, and what comes back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field

import torch

from openglm.config import ModelConfig
from openglm.engine.engine import Statistics
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.reading import Reading
from openglm.engine.writer import Step
from openglm.errors import OpenGLMError


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What a server must know of a model whose weights are elsewhere.

    Args:
        config: its architecture.
        dtype: that it computes in; decides how many tokens its memory holds.
        token_ids: see `LanguageModel`.
    """

    config: ModelConfig
    dtype: torch.dtype
    token_ids: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Writable:
    """What is to be written; its rules are made of its settings where it arrives.

    Args:
        prompt: what is read.
        params: settings, with a seed.
        special: see `RuleBook.equip`.
    """

    prompt: Prompt
    params: SamplingParams
    special: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A request on its way.

    Args:
        work: to be done.
        priority: see `Engine.add`, as the next.
        tenant: whose it is.
        seconds: until its deadline; clocks of two machines have nothing in common. None = never.
    """

    work: Writable | Reading
    priority: int
    tenant: str
    seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """What a replica has written since the parcel before, or read.

    Args:
        replica: its name.
        statistics: of its engine.
        steps: in order.
        reading: what came of one, with its last step.
        error: what ended the request, if that was its own fault.
    """

    replica: str
    statistics: Statistics
    steps: list[Step] = field(default_factory=list)
    reading: Reading | None = None
    error: OpenGLMError | None = None


Line = Callable[[Order], AsyncGenerator[Parcel, None]]
"""Takes an order to some replica; raises `ReplicaDied` if that one ends before the request does."""


class ReplicaDied(Exception):
    """A replica has ended in the middle of a request."""
