"""`Task`: what the training loop trains, and on what; pretraining is one, fine-tuning another."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from openglm.data.batches import Batch
from openglm.train.config import LoopConfig, OptimizerConfig, ScheduleConfig


class Settings(Protocol):
    """What the loop reads of a run's settings."""

    @property
    def train(self) -> LoopConfig:
        """The loop."""
        ...

    @property
    def optimizer(self) -> OptimizerConfig:
        """How a gradient becomes a step."""
        ...

    @property
    def schedule(self) -> ScheduleConfig:
        """How large it is, over the run."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values, in tables."""
        ...


class Task(Protocol):
    """A network, its batches, and what is wanted of it."""

    @property
    def settings(self) -> Settings:
        """Of the run."""
        ...

    @property
    def fingerprints(self) -> list[str]:
        """Names of the content of everything that it learns from."""
        ...

    @property
    def model(self) -> nn.Module:
        """Whose parameters that require a gradient are trained."""
        ...

    def batch(self, index: int) -> Batch:
        """Training batch number `index`, always the same for the same settings and data."""
        ...

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """Float32 scalar, the mean over the targets of a batch."""
        ...

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a step on this batch."""
        ...

    def validation(self, index: int) -> Batch | None:
        """Held-out batch number `index`; None where nothing is held out."""
        ...

    def examine(self) -> dict[str, float]:
        """What the network knows apart from what it is taught; {} where nobody asks."""
        ...

    def export(self, folder: Path, about: dict[str, int]) -> None:
        """Writes the result as it will be used.

        Args:
            folder: that is not there yet.
            about: how far the run came.
        """
        ...


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a network that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
