"""The watchdog: stops a run that is learning nothing, and says why."""

from __future__ import annotations

import math

from openglm.errors import TrainingStopped

ZERO_LOSS = 1e-4
ZERO_STEPS = 5


class Watchdog:
    """Sees the loss and the gradient norm of every step, before the weights are changed."""

    def __init__(self) -> None:
        self.zero_steps = 0

    def check(self, step: int, loss: float, grad_norm: float, learning_rate: float) -> None:
        """Raises `TrainingStopped` on a loss or gradient that is not finite, or a loss of zero."""
        for name, value in (("loss", loss), ("gradient norm", grad_norm)):
            if not math.isfinite(value):
                raise TrainingStopped(
                    f"the {name} is {value} at step {step} (learning rate {learning_rate:.3g}); "
                    "the weights were not changed by this step",
                    hint="resume from the last checkpoint with a smaller optimizer.learning_rate, "
                    "or with train.precision = float32",
                )
        self.zero_steps = self.zero_steps + 1 if loss < ZERO_LOSS else 0
        if self.zero_steps >= ZERO_STEPS:
            raise TrainingStopped(
                f"the loss has been below {ZERO_LOSS} for {ZERO_STEPS} steps, up to step {step}",
                hint="the targets are probably trivial: look at the data and the loss mask",
            )
