"""The choice of the next token: every option does what it says, and nothing else."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from openglm.engine.params import SamplingParams
from openglm.engine.processors import banned_ngrams
from openglm.engine.sampling import Sampler
from openglm.errors import RequestError

END = 0
PROBABILITIES = (0.02, 0.51, 0.30, 0.12, 0.05)  # END is the least likely
LOGITS = torch.tensor(PROBABILITIES).log()


def draws(num: int = 400, logits: torch.Tensor = LOGITS, banned=(), **options) -> Counter[int]:
    """How often each token is chosen as the first of a blank."""
    values = {"temperature": 1.0, "seed": 0} | options
    sampler = Sampler(SamplingParams(**values), [END], banned)
    return Counter(sampler.choose(logits, []).token for _ in range(num))


def chosen(logits: torch.Tensor, blank=(), earlier=(), **options) -> int:
    """The greedy choice, after `earlier` tokens were generated in the request."""
    sampler = Sampler(SamplingParams(**options), [END])
    sampler.generated.extend(earlier)
    return sampler.choose(logits, list(blank)).token


# ------------------------------------------------------------------ choosing


def test_greedy_takes_the_likeliest_and_ignores_the_filters():
    """Deterministic answers are not the most likely ones."""
    assert draws(temperature=0.0) == {1: 400}
    assert draws(temperature=0.0, top_k=3, top_p=0.9) == {1: 400}


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_tempered_distribution(temperature):
    """Temperature sharpens or flattens by another amount than asked."""
    num = 6000
    expected = torch.softmax(LOGITS / temperature, dim=-1)
    found = draws(num, temperature=temperature)
    for token, probability in enumerate(expected.tolist()):
        deviation = math.sqrt(probability * (1 - probability) / num)
        assert abs(found[token] / num - probability) < 4 * deviation


@pytest.mark.parametrize(("top_k", "kept"), [(1, {1}), (2, {1, 2}), (4, {1, 2, 3, 4})])
def test_top_k_keeps_the_k_likeliest(top_k, kept):
    """Unlikely tokens get through, or likely ones are lost."""
    assert set(draws(temperature=3.0, top_k=top_k)) == kept


@pytest.mark.parametrize("top_k", [0, 5, 99])
def test_top_k_of_everything_is_off(top_k):
    """top_k=0 or more than the vocabulary keeps nothing or crashes."""
    assert set(draws(temperature=3.0, top_k=top_k)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (1e-9, {1}),
        (0.5, {1}),
        (0.52, {1, 2}),
        (0.80, {1, 2}),
        (0.82, {1, 2, 3}),
        (1.0, {*range(5)}),
    ],
)
def test_top_p_keeps_the_token_that_crosses_the_threshold(top_p, kept):
    """The set is one token too small, or empty for a small top_p."""
    assert set(draws(1000, top_p=top_p)) == kept


def test_top_p_applies_after_temperature_and_top_k():
    """The filters are applied in another order than in the official code."""
    # softmax(log p / 0.5) of the two kept: 0.74 and 0.26, so top_p = 0.7 keeps one token;
    # without the temperature it would keep two (0.63 and 0.37).
    assert set(draws(temperature=0.5, top_k=2, top_p=0.7)) == {1}
    assert set(draws(temperature=1.0, top_k=2, top_p=0.7)) == {1, 2}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_banned_tokens_are_never_chosen(temperature):
    """Padding rows of the vocabulary or command tokens are generated."""
    assert set(draws(temperature=temperature, banned=[1, 2])) <= {0, 3, 4}


def test_log_probability_is_that_of_the_model():
    """Reported log-probabilities are those of the filtered distribution."""
    sampler = Sampler(SamplingParams(temperature=0.1, top_k=1), [END], [2])
    choice = sampler.choose(LOGITS + 3.0, [])
    assert (choice.token, choice.top) == (1, ())
    assert choice.log_probability == pytest.approx(math.log(0.51), abs=1e-6)


# ------------------------------------------------------------------ repetition, length


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    """A penalty makes repeated tokens with negative logits more likely."""
    logits = torch.tensor([-9.0, 4.0, 3.0, -9.0, -9.0])
    assert chosen(logits, earlier=[1], repetition_penalty=1.3) == 1  # 4 / 1.3 > 3
    assert chosen(logits, earlier=[1], repetition_penalty=1.4) == 2  # 4 / 1.4 < 3
    logits = torch.tensor([-9.0, -2.0, -3.0, -9.0, -9.0])
    assert chosen(logits, earlier=[1], repetition_penalty=1.4) == 1  # -2.8 > -3
    assert chosen(logits, earlier=[1], repetition_penalty=1.6) == 2  # -3.2 < -3


def test_repetition_penalty_is_applied_once_per_token():
    """A token that occurred twice is punished twice, unlike in CTRL."""
    logits = torch.tensor([-9.0, 4.0, 3.0, -9.0, -9.0])
    assert chosen(logits, earlier=[1, 1, 1], repetition_penalty=1.3) == 1


def test_repetition_penalty_remembers_earlier_blanks():
    """The second blank of a request may repeat the first unpunished."""
    sampler = Sampler(SamplingParams(repetition_penalty=10.0), [END])
    logits = torch.tensor([1.0, 4.0, 3.0, 2.0, 1.5])
    assert [sampler.choose(logits, []).token for _ in range(3)] == [1, 2, 3]


def test_repetition_penalty_does_not_punish_ending_a_blank():
    """After one blank has ended, the next one is kept from ending."""
    sampler = Sampler(SamplingParams(repetition_penalty=10.0), [END])
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    assert [sampler.choose(logits, []).token for _ in range(2)] == [END, END]


@pytest.mark.parametrize(
    ("tokens", "size", "banned"),
    [
        ([1, 2, 3, 1, 2], 3, {3}),
        ([1, 2, 3, 1, 2, 4, 1, 2], 3, {3, 4}),
        ([1, 2, 3], 3, set()),
        ([1, 1], 2, {1}),
        ([1, 2, 1], 1, {1, 2}),
        ([1, 2, 3, 1, 2], 0, set()),
        ([], 2, set()),
        ([1], 3, set()),
    ],
)
def test_ngrams_that_would_repeat_are_banned(tokens, size, banned):
    """Text loops although no_repeat_ngram_size is set, or words are banned for no reason."""
    assert set(banned_ngrams(tokens, size)) == banned


def test_no_repeat_ngram_size_looks_at_the_present_blank_only():
    """A banned n-gram is generated, or a second blank may not say what the first one says."""
    logits = torch.tensor([-9.0, 1.0, 2.0, 3.0, 0.0])
    assert chosen(logits, blank=[1, 3, 1], no_repeat_ngram_size=2) == 2
    assert chosen(logits, blank=[1], earlier=[1, 3], no_repeat_ngram_size=2) == 3


@pytest.mark.parametrize(("length", "expected"), [(0, 1), (2, 1), (3, END)])
def test_a_blank_does_not_end_before_min_tokens(length, expected):
    """Blanks come out shorter than asked, or never end."""
    logits = torch.tensor([5.0, 1.0, 0.0, 0.0, 0.0])
    assert chosen(logits, blank=[1] * length, min_tokens=3) == expected


# ------------------------------------------------------------------ seeds


def sequence(seed: int | None) -> tuple[list[int], int]:
    sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [END])
    return [sampler.choose(LOGITS, []).token for _ in range(40)], sampler.seed


def test_a_seed_repeats_the_choice_and_another_changes_it():
    """A result cannot be reproduced, or every request gives the same text."""
    assert sequence(7) == sequence(7)
    assert sequence(7)[0] != sequence(8)[0]


def test_without_a_seed_the_one_taken_is_told():
    """An unseeded result cannot be repeated from the seed that is reported."""
    tokens, seed = sequence(None)
    assert sequence(seed)[0] == tokens
    assert sequence(None)[0] != tokens


def test_the_global_generator_is_left_alone():
    """Generating text changes the random numbers of the user's own program."""
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    draws(10)
    assert torch.equal(torch.rand(1), expected)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("repetition_penalty", 0.0),
        ("no_repeat_ngram_size", -1),
        ("max_tokens", 0),
        ("min_tokens", -1),
        ("min_tokens", 129),
        ("num_beams", 0),
        ("num_beams", 1025),
    ],
)
def test_values_out_of_range(name, value):
    """An impossible setting is taken, or the message does not name it."""
    with pytest.raises(RequestError, match=f"{name}={value} must be"):
        SamplingParams.make(SamplingParams(), {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", math.inf),
        ("top_p", None),
        ("top_k", 2.5),
        ("max_tokens", 3.7),
        ("min_tokens", 0.5),
        ("num_beams", 2.5),
        ("no_repeat_ngram_size", 1.5),
        ("seed", 1.5),
        ("seed", "7"),
        ("seed", 2**64),
        ("length_penalty", math.nan),
    ],
)
def test_values_of_a_wrong_type(name, value):
    """A value of a wrong type is taken and gives a traceback of torch in the middle of a text."""
    with pytest.raises(RequestError, match=name):
        SamplingParams.make(SamplingParams(), {name: value})


def test_unknown_options_suggest_a_near_name():
    """A misspelt option is ignored."""
    with pytest.raises(RequestError, match="'temprature'") as error:
        SamplingParams.make(SamplingParams(), {"temprature": 1.0})
    assert "'temperature'" in error.value.hint


@pytest.mark.parametrize(
    "option",
    [{"temperature": 0.5}, {"repetition_penalty": 1.2}, {"top_k": 5}, {"top_p": 0.5}],
)
def test_beams_exclude_sampling_options(option):
    """An option that has no effect is taken."""
    with pytest.raises(RequestError, match=next(iter(option))) as error:
        SamplingParams(num_beams=2, **option)
    assert error.value.hint


def test_a_tiny_temperature_is_greedy():
    """Dividing by a small temperature overflows, and sampling crashes."""
    assert draws(20, temperature=1e-42) == {1: 20}
