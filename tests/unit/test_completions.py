"""Several results, log-probabilities, stop strings and bad words, from whole models."""

from __future__ import annotations

import math

import pytest
import torch

import openglm
from helpers_models import random_model, scripted_model, tiny_config
from openglm.engine.bad_words import BadWords
from openglm.engine.params import SamplingParams
from openglm.engine.sampling import Sampler
from openglm.errors import NumericalError, RequestError
from openglm.language_model import LanguageModel

ROWS = 432
TEXT = "the [MASK] sat on [sMASK]"


@pytest.fixture(scope="module")
def model(mini):
    config = tiny_config(vocab_size=ROWS, max_position_embeddings=64)
    return LanguageModel(random_model(config, seed=3), mini, "random")


def scripted(mini, script):
    config = tiny_config(vocab_size=ROWS, hidden_size=48, intermediate_size=192)
    return LanguageModel(scripted_model(config, script, mini.special.eop_id), mini, "scripted")


# ------------------------------------------------------------------ n, best_of


def test_each_of_n_completions_is_that_of_its_own_seed(model):
    """Completions share random numbers, or one of them cannot be had again alone."""
    options = {"temperature": 1.5, "max_tokens": 12}
    first = model.generate("the cat", n=3, seed=7, **options)
    results = [first, *first.others]
    assert [one.seed for one in results] == [7, 8, 9]
    assert len({tuple(one.token_ids) for one in results}) == 3
    for one in results:
        alone = model.generate("the cat", seed=one.seed, **options)
        assert (alone.text, alone.token_ids) == (one.text, one.token_ids)
        assert alone.others == ()


def test_seeds_wrap_around(model):
    """The second completion of the largest seed crashes."""
    first = model.generate("the cat", n=2, seed=2**64 - 1, max_tokens=2)
    assert [first.seed, first.others[0].seed] == [2**64 - 1, 0]


def test_all_completions_come_from_one_read_of_the_context(model, monkeypatch):
    """A long prompt is read once per completion."""
    read = []
    run = type(model.network).run

    def counted(self, ids, *rest):
        read.append(ids.shape[1])
        return run(self, ids, *rest)

    monkeypatch.setattr(type(model.network), "run", counted)
    model.generate("the cat sat on the mat", n=4, max_tokens=3)
    assert sum(length > 1 for length in read) == 1


def test_blanks_of_all_results_are_filled(model):
    """Only the first of n fillings is complete, or blanks of two results are mixed."""
    options = {"temperature": 1.5, "max_tokens": 5}
    first = model.fill(TEXT, n=3, seed=1, **options)
    for one in (first, *first.others):
        alone = model.fill(TEXT, seed=one.seed, **options)
        assert [b.token_ids for b in one.blanks] == [b.token_ids for b in alone.blanks]
        assert one.text == alone.text
    assert len(first.others) == 2


def test_best_of_keeps_the_likeliest(model):
    """best_of returns the first ones, or the least likely."""
    options = {"temperature": 2.0, "min_tokens": 3, "max_tokens": 6, "seed": 4}
    every = model.generate("the cat", n=6, **options)
    means = sorted((one.log_probability for one in (every, *every.others)), reverse=True)
    best = model.generate("the cat", n=2, best_of=6, **options)
    assert [one.log_probability for one in (best, *best.others)] == means[:2]
    assert means[0] > means[1] > means[-1]


@pytest.mark.parametrize("option", [{"n": 2}, {"n": 1, "best_of": 2}, {"logprobs": 0}])
def test_a_stream_refuses_what_it_cannot_give(option, model):
    """A streamed request drops results or log-probabilities without a word."""
    for stream in (model.stream, model.stream_fill):
        with pytest.raises(RequestError, match=list(option)[-1]):
            stream("the [MASK]", temperature=1.0, **option)


# ------------------------------------------------------------------ logprobs


@pytest.mark.parametrize("beams", [1, 3])
def test_logprobs_are_those_of_the_model(beams, model):
    """Log-probabilities are of other places, or of the filtered distribution."""
    settings = {"num_beams": 3} if beams > 1 else {"temperature": 0.5, "top_k": 3, "seed": 1}
    blank = model.fill("the [MASK] sat", logprobs=4, min_tokens=3, max_tokens=6, **settings)
    (blank,) = blank.blanks
    assert [record.token_id for record in blank.logprobs] == blank.token_ids
    found = [record.log_probability for record in blank.logprobs]
    assert sum(found) / len(found) == pytest.approx(blank.log_probability)
    for record in blank.logprobs:
        values = [other.log_probability for other in record.top]
        assert len(values) == 4
        assert values == sorted(values, reverse=True)
        assert values[0] >= record.log_probability
        if record.token_id in [other.token_id for other in record.top]:
            assert record.log_probability in values
    assert (
        b"".join(record.bytes for record in blank.logprobs).decode(errors="replace") == blank.text
    )


def test_logprobs_of_half_a_character(mini):
    """The bytes of a token that is no whole character are lost."""
    (blank,) = scripted(mini, mini.encode("a🙂")).fill("the [MASK]", logprobs=0).blanks
    assert b"".join(record.bytes for record in blank.logprobs) == "a🙂".encode()
    assert blank.logprobs[-1].text == "\ufffd"
    assert blank.logprobs[-1].top == ()


def test_logprobs_are_off_unless_asked_for(model):
    """Every request pays for alternatives that nobody reads."""
    assert model.fill("the [MASK]", max_tokens=2).blanks[0].logprobs is None


# ------------------------------------------------------------------ stop strings, bad words


def test_a_stop_string_ends_each_blank(mini):
    """The second blank is not ended, or the text keeps what stopped it."""
    model = scripted(mini, mini.encode(" fox###and more"))
    filled = model.fill("the [MASK] sat on [sMASK].", stop="##")
    assert filled.text == "the fox sat on fox."
    assert [blank.finish_reason for blank in filled.blanks] == ["stop", "stop"]
    pieces = model.stream_fill("the [MASK] sat on [sMASK].", stop=["##", "zzz"])
    assert "#" not in "".join(piece.text for piece in pieces)


def test_later_blanks_see_what_was_written_before_a_stop(model):
    """The token at which a blank was stopped is missing in front of the next blank."""
    free = model.fill(TEXT, max_tokens=4)
    spelt = [model.tokenizer.decode([token]) for token in free.blanks[0].token_ids]
    cut = model.fill(TEXT, max_tokens=3)
    stopped = model.fill(TEXT, max_tokens=4, stop="".join(spelt[1:3]))
    assert stopped.blanks[0].token_ids == cut.blanks[0].token_ids
    assert stopped.blanks[1].token_ids[:3] == cut.blanks[1].token_ids
    assert stopped.blanks[0].finish_reason == "stop"


def test_bad_words_are_not_written_however_they_are_cut(model):
    """The model writes a bad word with other tokens than our own cut of it."""
    options = {"temperature": 3.0, "max_tokens": 60, "top_k": 0}
    words = ["e", "th", "at"]
    for seed in range(8):
        text = model.generate("the cat", seed=seed, bad_words=words, **options).text
        assert not any(word in text for word in words)
    assert any("e" in model.generate("the cat", seed=seed, **options).text for seed in range(3))


def test_banned_tokens_are_exactly_those_that_complete_a_word():
    """Too many or too few tokens are impossible."""
    spellings = [b"a", b"b", b"ab", b"ba", b"bb", b"xaby", b"aba", b"", b"c"]
    for words in (["ab"], ["bab"], ["aa", "abb"], ["c"]):
        rule = BadWords(words, spellings)
        for blank in ([], [0], [1], [2], [0, 7], [0, 0, 1], [3, 2], [1, 0]):
            text = b"".join(spellings[token] for token in blank).decode()
            if any(word in text for word in words):
                continue
            expected = {
                token
                for token, more in enumerate(spellings)
                if any(word in text + more.decode() for word in words)
            }
            assert set(rule.banned(blank)) == expected, (words, blank)


# ------------------------------------------------------------------ settings


def test_the_bias_of_a_model(model):
    """A bias has no effect, or an id outside the vocabulary crashes."""
    token = model.tokenizer.encode("z")[0]
    filled = model.fill("the [MASK]", logit_bias={token: 100}, max_tokens=3)
    assert filled.blanks[0].token_ids == [token] * 3
    with pytest.raises(RequestError, match=f"id {ROWS}.*{ROWS} tokens"):
        model.fill("the [MASK]", logit_bias={ROWS: 1})


def test_presence_and_frequency_count_earlier_blanks():
    """A second blank may repeat the first unpunished, or drafts are counted twice."""
    logits = torch.tensor([0.0, 5.0, 4.0])
    sampler = Sampler(SamplingParams(frequency_penalty=0.75), [0])
    assert [sampler.choose(logits, []).token for _ in range(4)] == [1, 1, 2, 1]
    blank = [sampler.choose(logits, []).token]
    counted = sampler.scores(logits, blank)
    assert torch.equal(counted, sampler.scores(logits, blank))
    drafted = sampler.scores(logits, [*blank, 2])
    assert float(counted[2] - drafted[2]) == pytest.approx(0.75)
    assert float(counted[1]) == float(drafted[1])


def test_settings_cannot_change_and_can_be_hashed():
    """A list that the caller changes later changes a running request."""
    stop = ["a"]
    params = SamplingParams(
        stop=stop, bad_words="x", logit_bias={5: 1.0, 2: -1}, json_schema={"type": "object"}
    )
    stop.append("b")
    assert (params.stop, params.bad_words) == (("a",), ("x",))
    assert dict(params.logit_bias) == {2: -1, 5: 1.0}
    assert hash(params) == hash(SamplingParams.make(params, {}))
    assert openglm.SamplingParams is SamplingParams


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"min_p": 1.1}, "min_p=1.1"),
        ({"min_p": math.nan}, "min_p=nan"),
        ({"typical_p": 0.0}, "typical_p=0.0"),
        ({"presence_penalty": 2.1}, "presence_penalty=2.1"),
        ({"frequency_penalty": -2.1}, "frequency_penalty=-2.1"),
        ({"logit_bias": {1: 101}}, "logit_bias"),
        ({"logit_bias": {-1: 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1}}, "logit_bias"),
        ({"logit_bias": {1: math.nan}}, "logit_bias"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"stop": [""]}, "stop has a text of 0"),
        ({"stop": ["a" * 1025]}, "stop has a text of 1025"),
        ({"stop": ["a"] * 257}, "stop has 257"),
        ({"stop": 5}, "stop=5"),
        ({"stop": [5]}, "stop="),
        ({"bad_words": [b"a"]}, "bad_words="),
        ({"choice": []}, r"choice=\(\)"),
        ({"regex": ""}, "regex=''"),
        ({"regex": 5}, "regex=5"),
        ({"grammar": ["root"]}, "grammar="),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": "[1]"}, "json_schema="),
        ({"json_schema": {"a": {1}}}, "json_schema is not JSON"),
        ({"regex": "a", "choice": ["a"]}, "regex and choice"),
        ({"n": 0}, "n=0"),
        ({"n": 129, "temperature": 1.0}, "n=129"),
        ({"n": 3, "best_of": 2, "temperature": 1.0}, "best_of=2"),
        ({"n": 2}, "temperature=0"),
        ({"best_of": 2}, "temperature=0"),
        ({"n": None}, "n=None"),
        ({"logprobs": 21}, "logprobs=21"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"logprobs": 1.5}, "logprobs=1.5"),
        ({"num_beams": 2, "stop": ["a"]}, "num_beams=2 and stop"),
        ({"num_beams": 2, "regex": "a"}, "num_beams=2 and regex"),
        ({"num_beams": 2, "presence_penalty": 1.0}, "num_beams=2 and presence_penalty"),
    ],
)
def test_settings_that_cannot_be(option, named):
    """An impossible setting is taken, ignored, or named wrongly."""
    with pytest.raises(RequestError, match=named):
        SamplingParams.make(SamplingParams(), option)


# ------------------------------------------------------------------ numbers


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 0}, {"num_beams": 2}])
def test_no_token_is_chosen_from_nan_or_infinity(value, settings, mini):
    """Damaged weights or an overflow give text that looks like an answer."""
    network = random_model(tiny_config(vocab_size=ROWS))
    model = LanguageModel(network, mini, "damaged")
    network.word_embeddings.weight[7, 0] = value
    with pytest.raises(NumericalError, match=r"token 1 of a blank") as caught:
        model.fill("the [MASK]", **settings)
    assert caught.value.exit_code == 12
    assert "float32" in caught.value.hint


def test_minus_infinity_is_a_logit():
    """A network that rules out a token is called damaged."""
    sampler = Sampler(SamplingParams(), [])
    assert sampler.choose(torch.tensor([-math.inf, 1.0]), []).token == 1


def test_settings_that_leave_no_token_are_an_error():
    """A token that is impossible is written because no other is left."""
    sampler = Sampler(SamplingParams(no_repeat_ngram_size=1), [], [0])
    with pytest.raises(RequestError, match="nothing can be written as token 3"):
        sampler.choose(torch.zeros(3), [1, 2])
