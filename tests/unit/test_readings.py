"""Requests that are only read: log-probabilities of a prompt's own tokens."""

from __future__ import annotations

import random

import pytest
import torch

import openglm
from helpers_engine import CAUSAL, load, make_engine, random_params, random_prompt
from openglm.engine.reading import PromptScores, prompt_scores
from openglm.engine.score import ScoringPrompt
from openglm.errors import ContextOverflow, NumericalError, RequestError

TOLERANCE = 2e-5
"""Float32 sums in another order: pages and pieces here, one dense pass there."""


def run(engine, *readings):
    requests = [engine.add_reading(reading) for reading in readings]
    while engine.has_work:
        engine.step()
    return requests


def causal_scores(name, ids, top=2):
    """The scores of ids[1:] behind ids[0], with nothing in front."""
    prompt = ScoringPrompt([], -1, [ids[0]], (), True, True)
    return PromptScores(load(name).config, prompt, ids[1:], top)


def by_one_pass(name, ids):
    """(T, V) log-probabilities of one dense pass."""
    return torch.log_softmax(load(name).logits(torch.tensor([ids]))[0], dim=-1)


@pytest.mark.parametrize("name", CAUSAL)
def test_scores_are_those_of_one_pass(name):
    """A prompt's scores are another place's, or change with pieces, neighbours and lost pages."""
    rng = random.Random(name)
    config = load(name).config
    longest = min(config.max_position_embeddings, 120)
    texts = [[rng.randrange(3, config.vocab_size) for _ in range(n)] for n in (2, 33, longest)]
    engine = make_engine(name, pages=6, max_batch_tokens=7)
    readings = [causal_scores(name, ids) for ids in [*texts, texts[2]]]
    for _ in range(2):
        prompt = random_prompt(name, rng)
        engine.add(prompt, random_params(name, prompt, rng), priority=1)
    run(engine, *readings)
    for ids, reading in zip([*texts, texts[2]], readings, strict=True):
        expected = by_one_pass(name, ids)
        assert [step.token for step in reading.steps] == ids[1:]
        found = torch.tensor([step.log_probability for step in reading.steps])
        torch.testing.assert_close(
            found, expected[range(len(ids) - 1), ids[1:]], atol=TOLERANCE, rtol=0
        )
        best = torch.tensor([[value for _, value in step.top] for step in reading.steps])
        torch.testing.assert_close(best, expected[:-1].topk(2).values, atol=TOLERANCE, rtol=0)


def test_pages_are_given_and_not_taken():
    """Tokens go unscored since others had read them, or what a reading read is read again."""
    name = CAUSAL[0]
    ids = [3 + i for i in range(64)]
    engine = make_engine(name)
    run(engine, first := causal_scores(name, ids))
    run(engine, second := causal_scores(name, ids))
    assert engine.statistics.num_prefix_hits == 0
    assert len(second.steps) == len(first.steps) == 63
    prompt = openglm.engine.prompt.causal_prompt(ids[:63], frozenset())
    engine.add(prompt, openglm.SamplingParams(max_tokens=1))
    engine.step()
    assert engine.statistics.num_prefix_hits == 32


@pytest.mark.parametrize("limit", ["positions", "memory"])
def test_what_does_not_fit_is_refused(limit):
    """A prompt that is too long stops the engine, or waits for ever."""
    name = CAUSAL[0]
    length = load(name).config.max_position_embeddings
    causal_scores(name, [5] * (length + 1))  # the last is not fed
    if limit == "positions":
        with pytest.raises(ContextOverflow, match=f"needs {length + 1} positions"):
            causal_scores(name, [5] * (length + 2))
    else:
        with pytest.raises(RequestError, match="memory_bytes"):
            make_engine(name, pages=1).add_reading(causal_scores(name, [5] * 40))


def test_a_network_without_numbers_ends_one_request():
    """NaN is reported as a probability, or takes the whole engine with it."""
    name = CAUSAL[0]
    engine = make_engine(name)
    whole, broken = causal_scores(name, [5, 6, 7]), causal_scores(name, [5, 6, 7])
    broken.see(0, torch.full((1, load(name).config.hidden_size), torch.nan), engine.model.logits)
    fine, failed = run(engine, whole, broken)
    assert (fine.finish_reason, failed.finish_reason) == ("stop", "error")
    assert isinstance(failed.error, NumericalError)


def test_a_reading_is_cancelled_between_pieces():
    """Nobody waits for it any more, and it is read on."""
    engine = make_engine(CAUSAL[0], max_batch_tokens=8)
    request = engine.add_reading(causal_scores(CAUSAL[0], [5] * 60))
    engine.step()
    engine.cancel(request.id)
    engine.step()
    assert request.finish_reason == "cancelled"
    assert not engine.has_work


def test_models_that_see_a_prompt_whole_write_it_into_a_blank():
    """GLM's scores are of a prompt that knows its own words."""
    model = openglm.load()
    text = "The river runs to the sea."
    (expected,) = model.score("", [text], unidirectional=True)
    reading = prompt_scores(model.tokenizer, model.config, model.tokenizer.encode(text), 0)
    run(model.engine(), reading)
    found = [step.log_probability for step in reading.steps]
    assert found == pytest.approx(expected.log_probabilities[1:], abs=TOLERANCE)
