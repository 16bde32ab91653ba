"""Claim: with top_p a token is chosen at least ten times as fast as by transformers.

All of `Sampler.choose`: the check for NaN, the filters, the draw, and the log-probability. In turn
with it: the same with the filters in plain torch, and transformers' processors with
`torch.multinomial`. The logits are normal numbers, scaled so that the likeliest tokens stand out as
a language model's do.
"""

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from benchmarks.record import seconds, spread
from openglm.engine.params import SamplingParams
from openglm.engine.sampling import Sampler
from openglm.kernels import sampling

VOCABULARIES = {"mini": 16_384, "chatglm2-6b": 65_024, "glm-4-9b": 151_552}
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "temperature": {"temperature": 0.8},
    "top_p": {"temperature": 0.8, "top_p": 0.8},
    "top_k and top_p": {"temperature": 0.8, "top_k": 50, "top_p": 0.8},
}
SPREAD = 3.0
REPEATS = 30
ROUNDS = 5
"""Each takes all in turn, so that a noisy minute is everybody's."""


def measure() -> dict[str, Any]:
    """Microseconds of a token, for each vocabulary and settings."""
    return {
        "unit": "microseconds of a token",
        "results": {
            f"{model}, {name}": _compare(size, values)
            for model, size in VOCABULARIES.items()
            for name, values in SETTINGS.items()
        },
    }


def _compare(size: int, values: dict[str, Any]) -> dict[str, Any]:
    logits = torch.randn(size, generator=torch.Generator().manual_seed(0)) * SPREAD
    ours = partial(_choose, Sampler(SamplingParams(seed=1, **values), [2]), logits)
    works: dict[str, Callable[[], object]] = {
        "compiled": ours,
        "plain_torch": partial(_in_plain_torch, ours),
        "transformers": partial(_transformers, logits, values),
    }
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            found[name].append(median(seconds(work, REPEATS)) * 1e6)
    told: dict[str, Any] = {name: spread(times) for name, times in found.items()}
    least = told["compiled"]["median"]
    ratios = {f"{name}_to_compiled": told[name]["median"] / least for name in list(works)[1:]}
    return told | ratios


def _choose(sampler: Sampler, logits: Tensor) -> None:
    sampler.choose(logits, [])
    sampler.generated.clear()


def _in_plain_torch(work: Callable[[], object]) -> None:
    with patch.object(sampling, "module", lambda: None):
        work()


def _transformers(logits: Tensor, values: dict[str, Any]) -> int:
    if values["temperature"] == 0:
        return int(logits[None].argmax(dim=-1))
    warpers = LogitsProcessorList([TemperatureLogitsWarper(values["temperature"])])
    if "top_k" in values:
        warpers.append(TopKLogitsWarper(values["top_k"]))
    if "top_p" in values:
        warpers.append(TopPLogitsWarper(values["top_p"]))
    scores = warpers(torch.zeros((1, 0), dtype=torch.int64), logits[None])
    return int(torch.multinomial(torch.softmax(scores, dim=-1), 1))
