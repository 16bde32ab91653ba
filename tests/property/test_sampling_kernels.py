"""The choice of a token, in plain torch and compiled for every instruction set of this machine."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from openglm.kernels import cpu, sampling
from openglm.kernels.sampling import Filters

native = cpu.module()
VARIANTS = [cpu.REFERENCE] if native is None else [cpu.REFERENCE, *native.variants()]
SIZES = (1, 2, 15, 16, 17, 255, 256, 1025, 65_024)  # tails of registers and of pieces
NEAR = 1e-4
"""Shares of float32 decide alike unless a threshold is nearer than this."""


@pytest.fixture(params=VARIANTS, autouse=True)
def variant(request, monkeypatch):
    if request.param == cpu.REFERENCE:
        monkeypatch.setattr(sampling, "module", lambda: None)
        yield
        return
    before = native.variant()
    native.use(request.param)
    yield
    native.use(before)


def some_logits(size, spread=3.0, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def assert_equal_but_for_thresholds(found, expected):
    """Equal, or a token more or less in a set whose share lies at the border."""
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    differs = (found > 0) != (expected > 0)
    assert int(differs.sum()) <= 1 or float(torch.maximum(found, expected)[differs].sum()) < NEAR
    if not differs.any():
        assert_close(found, expected, atol=1e-7, rtol=2e-5)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spread", [0.01, 3.0, 60.0])
@pytest.mark.parametrize(
    "by",
    [
        Filters(),
        Filters(temperature=0.3),
        Filters(top_k=1),
        Filters(top_k=50),
        Filters(top_p=0.8),
        Filters(top_p=0.99999),
        Filters(top_p=1e-6),
        Filters(min_p=0.1),
        Filters(typical_p=0.9),
        Filters(0.8, 40, 0.9, 0.02, 0.95),
    ],
    ids=str,
)
def test_probabilities(size, spread, by):
    """A tail is left out, a set is too small or too large, or a weight is another one."""
    logits = some_logits(size, spread)
    logits[: size // 3] = -torch.inf
    assert_equal_but_for_thresholds(
        sampling.probabilities(logits, by), sampling.reference(logits, by)
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([-math.inf, -200.0, -3.0, 0.0, 0.5, 0.5, 8.0]), max_size=40),
    st.integers(0, 41),
    st.sampled_from([0.1, 0.5, 0.9, 1.0]),
    st.sampled_from([1e-300, 1e-20, 0.01, 1.0, 1e6]),
)
@example([], 1, 0.5, 1.0)
def test_ties_and_what_is_impossible(found, k, p, temperature):
    """Of equal tokens the first are kept, all at the border of top-k, and none that is banned."""
    logits = torch.tensor([*found, 1.0])
    for by in (Filters(temperature, k), Filters(temperature, 0, p), Filters(temperature, k, p)):
        expected = sampling.reference(logits, by)
        assert_equal_but_for_thresholds(sampling.probabilities(logits, by), expected)
        assert not sampling.probabilities(logits, by)[logits == -torch.inf].any()


@pytest.mark.parametrize(
    "by",
    [
        Filters(top_k=10**30),
        Filters(temperature=1e300),
        Filters(temperature=1e-300),
        Filters(top_p=1e-300),
        Filters(typical_p=1e-300),
        Filters(min_p=1e-300),
        Filters(min_p=1.0),
        Filters(top_p=1 - 1e-16),
    ],
    ids=str,
)
def test_what_no_machine_number_holds(by):
    """A value that is allowed, and too large or small for the compiled filters, ends a request."""
    logits = some_logits(100)
    found = sampling.probabilities(logits, by)
    assert_equal_but_for_thresholds(found, sampling.reference(logits, by))


def test_the_smallest_set_takes_equal_tokens_in_order():
    """Which of many equal tokens may be drawn depends on how they are sorted."""
    logits = torch.zeros(1024)
    for by in (Filters(top_p=0.25), Filters(typical_p=0.25)):
        kept = sampling.probabilities(logits, by).nonzero().flatten().tolist()
        assert kept == list(range(256))


@pytest.mark.parametrize("size", SIZES)
def test_log_sum_exp(size):
    """Log-probabilities are off, or a damaged network goes on writing."""
    logits = some_logits(size)
    expected = float(logits.double().logsumexp(0))
    assert sampling.log_sum_exp(logits) == pytest.approx(expected, abs=1e-6, rel=1e-6)
    for place in {0, size // 2, size - 1}:
        for wrong in (torch.nan, torch.inf):
            damaged = logits.clone()
            damaged[place] = wrong
            assert not math.isfinite(sampling.log_sum_exp(damaged))
    impossible = torch.full((size,), -torch.inf)
    assert sampling.log_sum_exp(impossible) == -math.inf
    half = logits.clone()
    half[1:] = -torch.inf
    assert sampling.log_sum_exp(half) == pytest.approx(float(logits[0]))


@pytest.mark.parametrize("size", SIZES)
def test_best_is_the_first_of_the_largest(size):
    """Greedy decoding depends on the width of a register."""
    scores = some_logits(size).clamp(max=1)
    assert sampling.best(scores) == int((scores == scores.max()).nonzero()[0])
    for place in {0, size // 2, size - 1}:
        scores[place] = 9
        assert sampling.best(scores) == place
        scores[place] = -9
    assert sampling.best(torch.full((size,), -torch.inf)) == 0


@pytest.mark.parametrize("size", SIZES)
def test_draw(size):
    """A token is drawn at the place of its neighbour, or one that is impossible."""
    shares = sampling.reference(some_logits(size), Filters())
    shares[::3] = 0
    if size == 1:
        shares[0] = 1
    ends = shares.double().cumsum(0)
    for place in [0.0, *torch.rand(200, dtype=torch.float64).tolist(), 1 - 2**-53]:
        found = sampling.draw(shares, place)
        assert shares[found] > 0
        begin = float(ends[found] - shares[found])
        assert begin - 1e-12 <= place * float(ends[-1]) <= float(ends[found]) + 1e-12
