"""Each processor against its formula spelled out over lists, and what switches it off."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openglm.engine import processors
from openglm.engine.params import SamplingParams
from openglm.engine.sampling import Sampler
from openglm.kernels import sampling

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=12)
SHARES = st.floats(0.05, 0.95)
NEAR = 1e-5
"""Sums of float32 are only compared where no threshold is nearer than this."""


def probabilities_of(logits: list[float]) -> torch.Tensor:
    return torch.softmax(torch.tensor(logits), dim=-1)


def kept(probabilities: torch.Tensor) -> set[int]:
    return set(probabilities.nonzero().flatten().tolist())


def smallest_set(shares: list[float], order: list[int], p: float) -> set[int] | None:
    """Tokens in this order until their sum reaches p; None if that is a matter of rounding."""
    total, out = 0.0, set()
    for token in order:
        if abs(total - p) < NEAR:
            return None
        if total >= p:
            break
        out.add(token)
        total += shares[token]
    return out


@given(LOGITS, SHARES)
def test_top_p_is_the_smallest_set(logits, p):
    """A nucleus is a token too large or too small."""
    found = sampling.top_p(probabilities_of(logits), p)
    shares = probabilities_of(logits).tolist()
    order = sorted(range(len(shares)), key=lambda token: -shares[token])
    expected = smallest_set(shares, order, p)
    assert expected is None or kept(found) == expected


@given(LOGITS, SHARES)
def test_typical_is_the_smallest_set_nearest_to_the_entropy(logits, p):
    """Typical sampling ranks by likelihood, or by another entropy (Meister et al. 2022)."""
    shares = probabilities_of(logits).double().tolist()
    entropy = -sum(share * math.log(share) for share in shares)
    away = [abs(-math.log(share) - entropy) for share in shares]
    order = sorted(range(len(shares)), key=lambda token: away[token])
    gaps = [away[b] - away[a] for a, b in pairwise(order)]
    expected = smallest_set(shares, order, p)
    found = sampling.typical_p(probabilities_of(logits), p)
    if expected is not None and min(gaps) > NEAR:
        assert kept(found) == expected


def test_typical_drops_the_likeliest_token_of_a_flat_distribution():
    """Typical sampling is top-p under another name."""
    shares = torch.tensor([0.3, *[0.07] * 10])  # entropy 2.22: 0.3 is 1.02 away, 0.07 only 0.44
    assert kept(sampling.typical_p(shares, 0.6)) == set(range(1, 10))


@given(LOGITS, SHARES)
def test_min_p_compares_with_the_likeliest(logits, share):
    """min-p is an absolute threshold, or relative to something else (Nguyen et al. 2024)."""
    shares = probabilities_of(logits).tolist()
    limit = share * max(shares)
    found = kept(sampling.min_p(probabilities_of(logits), share))
    for token, value in enumerate(shares):
        if abs(value - limit) > NEAR:
            assert (token in found) == (value > limit)


@given(LOGITS, st.integers(1, 14))
def test_top_k_keeps_k_and_ties(logits, k):
    """The k-th token is lost, or one of several equal ones."""
    shares = probabilities_of(logits).tolist()
    limit = sorted(shares, reverse=True)[min(k, len(shares)) - 1]
    found = kept(sampling.top_k(probabilities_of(logits), k))
    assert found == {token for token, share in enumerate(shares) if share >= limit}


@given(
    LOGITS,
    st.lists(st.integers(0, 11), max_size=20),
    st.floats(0.5, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
)
def test_penalties_follow_their_formulas(logits, written, repetition, presence, frequency):
    """A penalty counts wrongly, or touches tokens that were not written."""
    written = [token for token in written if token < len(logits)]
    scores = torch.tensor(logits)
    processors.penalise_repeats(scores, written, repetition, presence, frequency)
    counts = Counter(written)
    for token, logit in enumerate(logits):
        expected = logit
        if token in counts:
            expected = logit / repetition if logit > 0 else logit * repetition
            expected -= counts[token] * frequency + presence
        assert float(scores[token]) == pytest.approx(expected, abs=1e-4)  # float32 up to 60


@given(LOGITS, st.dictionaries(st.integers(0, 1), st.floats(-100, 100)))
def test_bias_is_added(logits, bias):
    """A bias replaces or scales a logit, or reaches another token."""
    scores = torch.tensor(logits)
    processors.add_bias(scores, bias)
    for token, logit in enumerate(logits):
        assert float(scores[token]) == pytest.approx(logit + bias.get(token, 0), abs=1e-4)


@given(LOGITS, st.floats(0.1, 5))
def test_filters_that_are_off_change_nothing(logits, temperature):
    """A setting that is off still filters."""
    sampler = Sampler(SamplingParams(temperature=temperature), [])
    sampler.generated = [0, 0]
    scores = sampler.scores(torch.tensor(logits), [0, 0])
    assert torch.equal(scores, torch.tensor(logits))
    expected = torch.softmax(torch.tensor(logits) / temperature, dim=-1)
    torch.testing.assert_close(sampler.probabilities(scores), expected, atol=1e-5, rtol=1e-4)


@given(LOGITS, st.integers(0, 6), SHARES, SHARES, SHARES)
def test_probabilities_sum_to_one(logits, k, p, share, typical):
    """Speculative decoding compares distributions that are none; or a set is empty."""
    params = SamplingParams(temperature=1.3, top_k=k, top_p=p, min_p=share, typical_p=typical)
    sampler = Sampler(params, [])
    found = sampler.probabilities(sampler.scores(torch.tensor(logits), []))
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    one_by_one = sampling.tempered(torch.tensor(logits), 1.3)
    for step in (
        lambda x: sampling.top_k(x, k),
        lambda x: sampling.top_p(x, p),
        lambda x: sampling.min_p(x, share),
        lambda x: sampling.typical_p(x, typical),
    ):
        one_by_one = step(one_by_one)
    assert kept(found) == kept(one_by_one)


def test_draws_follow_the_distribution():
    """Tokens are drawn with other frequencies than `probabilities` says (chi-square)."""
    logits = torch.tensor([2.0, 1.5, 1.0, 0.3, 0.0, -0.5, -1.0, -4.0])
    params = SamplingParams(temperature=0.8, top_k=7, top_p=0.97, min_p=0.02, seed=5)
    sampler = Sampler(params, [])
    expected = sampler.probabilities(sampler.scores(logits, []))
    num = 20_000
    counts = Counter(sampler.choose(logits, []).token for _ in range(num))
    likely = kept(expected)
    assert set(counts) == likely
    assert 4 <= len(likely) < 8
    square = sum((counts[t] - num * float(expected[t])) ** 2 / (num * expected[t]) for t in likely)
    assert float(square) < 22.5  # 99.9 % of chi-square with 6 degrees of freedom
