"""Learning-rate schedules against recorded values of the official GLM code."""

from __future__ import annotations

import json

import pytest

from helpers_models import GLM_GOLDENS
from openglm.train.config import ScheduleConfig
from openglm.train.schedule import learning_rate

SCHEDULES = json.loads((GLM_GOLDENS / "lr_schedule.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "recorded", SCHEDULES, ids=[f"{s['style']}-{s['num_iters']}" for s in SCHEDULES]
)
def test_recorded_schedule(recorded):
    """A run with the published settings is trained with other learning rates."""
    config = ScheduleConfig(
        kind=recorded["style"], warmup=recorded["warmup"], decay_ratio=recorded["decay_ratio"]
    )
    found = [
        learning_rate(step, recorded["num_iters"], recorded["lr"], config)
        for step in recorded["steps"]
    ]
    assert found == pytest.approx(recorded["lrs"], rel=1e-12, abs=0)


def test_schedule_without_warmup_starts_at_the_largest_rate():
    """Without a warm-up the schedule divides by zero or starts from nothing."""
    config = ScheduleConfig(kind="linear", warmup=0.0, decay_ratio=0.0)
    found = [learning_rate(step, 10, 2.0, config) for step in (0, 5, 10)]
    assert found == pytest.approx([2.0, 1.0, 0.0])
