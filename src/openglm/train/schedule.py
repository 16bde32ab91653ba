"""Learning-rate schedules of the GLM pretraining code."""

from __future__ import annotations

import math

from openglm.train.config import ScheduleConfig


def learning_rate(step: int, steps: int, largest: float, config: ScheduleConfig) -> float:
    """Learning rate of optimizer step `step` (1 is the first) in a run of `steps`.

    Warm-up is linear over `warmup * steps`. Then, with p = progress after it:

        linear  largest * (1 - (1 - ratio) * p), not clamped: it keeps falling behind the end
        cosine  largest * ratio * ((cos(pi * min(1, p)) + 1) * (1/ratio - 1) / 2 + 1)

    (annealing_lr of the GLM repository; the cosine one floors at ratio * largest.)
    """
    warmup = config.warmup * steps
    if warmup > 0 and step <= warmup:
        return largest * step / warmup
    progress = (step - warmup) / (steps - warmup)
    ratio = config.decay_ratio
    if config.kind == "linear":
        return largest - largest * (1 - ratio) * progress
    decayed = (math.cos(math.pi * min(1.0, progress)) + 1) / 2
    return largest * (decayed * (1 - ratio) + ratio)
