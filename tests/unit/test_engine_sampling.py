"""The settings of sampling do in the engine, in company and with guesses, what they do alone."""

from __future__ import annotations

import dataclasses
import math
import re

import pytest

from helpers_engine import finish
from helpers_models import random_model, scripted_model, tiny_config
from openglm.engine.engine import Engine
from openglm.engine.params import SamplingParams
from openglm.engine.text_stream import StopStrings
from openglm.errors import NumericalError, RequestError
from openglm.language_model import LanguageModel

ROWS = 432
TEXT = "the [MASK] sat on [sMASK]"
PROMPTS = ["the cat", "the river flows into the sea", "a"]
HOT = {"temperature": 1.5, "max_tokens": 12, "seed": 7}


@pytest.fixture(scope="module")
def model(mini):
    config = tiny_config(vocab_size=ROWS, max_position_embeddings=64)
    return LanguageModel(random_model(config, seed=3), mini, "random")


def scripted(mini, text):
    config = tiny_config(vocab_size=ROWS, hidden_size=48, intermediate_size=192)
    network = scripted_model(config, mini.encode(text), mini.special.eop_id)
    return LanguageModel(network, mini, "scripted")


def assert_same(found, expected):
    """Equal results, with all that follow them; log p may differ by rounding."""
    for one, other in zip((found, *found.others), (expected, *expected.others), strict=True):
        assert (one.text, one.token_ids, one.finish_reason, one.seed) == (
            (other.text, other.token_ids, other.finish_reason, other.seed)
        )
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5, nan_ok=True)
        for record, same in zip(one.logprobs or (), other.logprobs or (), strict=True):
            assert [entry.token_id for entry in record.top] == [e.token_id for e in same.top]
            assert [entry.log_probability for entry in (record, *record.top)] == pytest.approx(
                [entry.log_probability for entry in (same, *same.top)], abs=1e-5
            )


# ------------------------------------------------------------------ settings


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {70: 4.0, 71: -100}, "temperature": 0},
        {"presence_penalty": 2.0, "frequency_penalty": 1.5},
        {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"min_p": 0.1, "typical_p": 0.7},
        {"bad_words": ["e", "th"], "temperature": 3.0},
        {"stop": ["e", "a "], "min_tokens": 3},
        {"logprobs": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_settings_in_company(model, options):
    """A setting is dropped on the way into the engine, or shared by all requests in it."""
    found = model.generate_batch(PROMPTS, **HOT | options)
    for completion, prompt in zip(found, PROMPTS, strict=True):
        expected = model.generate(prompt, **HOT | options)
        assert_same(completion, expected)
        without = {name: HOT.get(name) for name in options if name in HOT}
        plain = model.generate(prompt, **HOT | without)
        assert completion != plain
    assert ("logprobs" in options) == (found[0].logprobs is not None)


@pytest.mark.parametrize("most", [0, 6])
def test_each_request_is_held_to_its_own_pattern(model, most):
    """Requests move the automaton of another, or a guess that failed stays in it."""
    pytest.importorskip("xgrammar", reason="the extra `grammar` is not installed")
    engine = model.engine(memory_bytes=1 << 20, max_drafts=most)
    options = {"regex": "(ab|e){9,14}c", "temperature": 3.0, "top_k": 0, "max_tokens": 40}
    requests = [engine.add(*model.request(TEXT, "fill", seed=seed, **options)) for seed in range(4)]
    finish(engine)
    for seed, request in enumerate(requests):
        blanks = model.fill(TEXT, seed=seed, **options).blanks
        assert [request.blank(index) for index in range(2)] == [b.token_ids for b in blanks]
        assert all(re.fullmatch(options["regex"], blank.text) for blank in blanks)
    numbers = engine.statistics
    assert (numbers.num_drafted > numbers.num_accepted > 0) == (most > 0)


# ------------------------------------------------------------------ stop strings


@pytest.mark.parametrize("most", [0, 8])
@pytest.mark.parametrize("stop", ["t the cat the c", "cat", "at t", "e"])
def test_stop_strings_and_guesses(mini, stop, most):
    """Tokens behind a stop string are taken because they were guessed rightly."""
    model = scripted(mini, " the cat" * 18)
    options = {"stop": stop, "min_tokens": 19, "max_tokens": 36}
    expected = model.fill(TEXT, **options)
    assert all(19 <= len(blank.token_ids) < 36 for blank in expected.blanks)
    engine = model.engine(memory_bytes=1 << 22, max_drafts=most)
    request = engine.add(*model.request(TEXT, "fill", **options))
    finish(engine)
    for index, blank in enumerate(expected.blanks):
        assert request.blank(index) == blank.token_ids
    ends = [step.finish_reason for step in request.steps if step.token is None]
    assert ends == ["stop", "stop"]
    written = [token for blank in expected.blanks for token in blank.token_ids]
    assert request.writer.sampler.generated == written
    numbers = engine.statistics
    assert (numbers.num_drafted > numbers.num_accepted) == (most > 0)


@pytest.mark.parametrize("most", [0, 8])
def test_a_stop_string_at_the_last_token_is_a_stop(mini, most):
    """A text whose stop string is complete with its last token ends for its length."""
    model = scripted(mini, "ab" * 8 + "#")
    count = len(mini.encode("ab" * 8 + "#"))
    engine = model.engine(memory_bytes=1 << 20, max_drafts=most)
    request = engine.add(*model.request("[MASK]", "fill", stop="b#", max_tokens=count))
    finish(engine)
    assert (len(request.blank()), request.finish_reason) == (count, "stop")


def test_one_watch_for_several_texts(mini):
    """What one text holds counts as the beginning of another."""
    ids = mini.encode("say ###end")
    place = next(n for n in range(1, len(ids)) if "###" in mini.decode(ids[:n]))
    ends = StopStrings(mini, SamplingParams(stop="###"))
    for blank in (ids[:1], [7], ids[:2], ids[: place - 1], [7, 8], ids[:1]):
        assert not ends(blank)
    assert ends(ids[:place])
    assert not ends(ids[:1])


# ------------------------------------------------------------------ several results


@pytest.mark.parametrize("options", [{"n": 3}, {"n": 2, "best_of": 5}, {"n": 1, "best_of": 3}])
def test_several_results_of_each_prompt(model, options):
    """Results of a batch come in another order, of other seeds, or of another prompt."""
    found = model.generate_batch(PROMPTS, logprobs=1, **HOT | options)
    for completion, prompt in zip(found, PROMPTS, strict=True):
        assert_same(completion, model.generate(prompt, logprobs=1, **HOT | options))
        assert len(completion.others) == options["n"] - 1


def test_seeds_of_results_without_a_seed(model):
    """All prompts, or all results of a prompt, get the same random numbers."""
    found = model.generate_batch(["the cat", "the cat"], temperature=1.5, n=2, max_tokens=12)
    seeds = [[one.seed for one in (first, *first.others)] for first in found]
    assert [second - first for first, second in seeds] == [1, 1]
    assert seeds[0] != seeds[1]
    again = model.generate("the cat", temperature=1.5, max_tokens=12, seed=seeds[1][1])
    assert again.token_ids == found[1].others[0].token_ids


# ------------------------------------------------------------------ refusals, broken numbers


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"stop": "a"}, "need the model's tokenizer"),
        ({"bad_words": "a"}, "need the model's tokenizer"),
        ({"regex": "a"}, "need the model's tokenizer"),
        ({"bad_words": "a", "regex": "b"}, "need the model's tokenizer"),
        ({"logit_bias": {ROWS: 1.0}}, f"id {ROWS}; this model has {ROWS} tokens"),
        ({"n": 2, "temperature": 1.0}, "n=2 and best_of=None: a request of the engine writes once"),
        ({"best_of": 2, "temperature": 1.0}, "n=1 and best_of=2: a request"),
    ],
)
def test_what_a_request_cannot_have(model, option, message):
    """A setting is taken into the engine and has no effect, or stops the engine later."""
    engine = model.engine(memory_bytes=1 << 20)
    prompt, params, rules, ends = model.request("the cat", bad_words="x", temperature=0)
    params = dataclasses.replace(params, **{"bad_words": ()} | option)
    few = rules if len(option) == 2 and "regex" in option else ()  # one rule for two settings
    with pytest.raises(RequestError, match=message):
        engine.add(prompt, params, few, ends)
    assert not engine.has_work


@pytest.fixture
def damaged(mini):
    """Contexts of more than 8 tokens give NaN, shorter ones do not."""
    network = random_model(tiny_config(vocab_size=ROWS), seed=3)
    network.positions.position.weight[8:] = math.nan
    return LanguageModel(network, mini, "damaged")


def test_broken_numbers_end_their_own_request_only(damaged, mini):
    """NaN of one request ends its neighbours, or comes back from its pages to those after it."""
    engine = Engine(damaged.network, memory_bytes=1 << 16)
    asked = [damaged.request(text, max_tokens=6, temperature=0) for text in ("a", PROMPTS[1] * 2)]
    sound, broken = (engine.add(*one) for one in asked)
    finish(engine)
    assert broken.finish_reason == "error"
    assert isinstance(broken.error, NumericalError)
    assert broken.blank() == []
    expected = damaged.generate("a", max_tokens=6, temperature=0).token_ids
    assert sound.blank() == expected
    for _ in range(engine.pool.num_pages):  # every page that held NaN is used again
        later = engine.add(*asked[0])
        engine.step()
        finish(engine)
        assert later.blank() == expected
    with pytest.raises(NumericalError, match="token 1 of a blank"):
        damaged.generate_batch(["a", PROMPTS[1] * 2], max_tokens=6, temperature=0)
