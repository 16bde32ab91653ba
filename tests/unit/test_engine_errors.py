"""Requests that cannot be honoured are refused with the value and what is allowed."""

from __future__ import annotations

import math

import pytest
import torch

import openglm
from helpers_models import random_model, tiny_config, write_checkpoint
from openglm.errors import OpenGLMError, RequestError, TokenizerError
from openglm.language_model import LanguageModel

CONFIG = tiny_config(vocab_size=432)


@pytest.fixture(scope="module")
def model(mini):
    return LanguageModel(random_model(CONFIG), mini, "random")


# ------------------------------------------------------------------ fill, generate, score


def test_text_without_a_blank(model):
    """The text comes back unchanged, as if it had been filled."""
    with pytest.raises(RequestError, match="no blank") as error:
        model.fill("the cat sat on the mat")
    assert "[MASK]" in error.value.hint


@pytest.mark.parametrize("mask", ["[gMASK]", "[sMASK]"])
def test_blank_that_the_model_was_not_trained_with(mask, bert):
    """A mask token that a BERT model lacks is read as ordinary letters."""
    model = LanguageModel(random_model(CONFIG), bert, "bert")
    with pytest.raises(RequestError, match=rf"not trained with \{mask}") as error:
        model.fill(f"the cat {mask}")
    assert "[MASK]" in error.value.hint
    assert mask not in error.value.hint


@pytest.mark.parametrize("method", ["fill", "generate", "stream", "stream_fill"])
def test_unknown_option(method, model):
    """A misspelt option is ignored."""
    with pytest.raises(RequestError, match="'max_token'") as error:
        list(getattr(model, method)("the [MASK]", max_token=3))
    assert "did you mean 'max_tokens'" in error.value.hint


@pytest.mark.parametrize("method", ["fill", "generate", "stream", "stream_fill"])
def test_text_that_is_too_long(method, model):
    """A long text is cut without a word, or gives an IndexError of the position table."""
    with pytest.raises(
        RequestError, match=r"text has \d+ tokens; this model reads at most 40"
    ) as e:
        list(getattr(model, method)("z" * 50 + "[MASK]"))
    assert e.value.hint


def test_the_longest_text_that_fits(model):
    """The limit is one too small."""
    # [CLS] + 38 letters + [gMASK] = 40 tokens
    assert len(model.generate("z" * 38, min_tokens=2, max_tokens=2).token_ids) == 2
    with pytest.raises(RequestError, match="41 tokens"):
        model.generate("z" * 39, max_tokens=2)


def test_max_tokens_beyond_the_position_table(model):
    """A long blank gives an IndexError of the block-position table after many tokens."""
    assert len(model.fill("[MASK]", min_tokens=39, max_tokens=39).blanks[0].token_ids) == 39
    with pytest.raises(RequestError, match="max_tokens=40 must be at most 39"):
        model.fill("[MASK]", max_tokens=40)


def test_default_max_tokens_fits_small_models(model):
    """A model with few positions refuses every request that does not set max_tokens."""
    assert len(model.generate("the", temperature=5.0, seed=1).token_ids) <= 39


def test_beams_with_temperature(model):
    """Sampling was asked for and is silently not done."""
    with pytest.raises(RequestError, match=r"num_beams=3 and temperature=0\.5"):
        model.fill("the [MASK]", num_beams=3, temperature=0.5)


def test_beams_alone_switch_the_sampling_defaults_off(model):
    """generate(num_beams=3) contradicts its own default temperature."""
    options = {"num_beams": 3, "max_tokens": 4}
    found = model.generate("the", **options)
    assert found.token_ids == model.generate("the", **options).token_ids


def test_score_needs_one_blank_and_choices(model):
    """The answer for one of two blanks is scored, or no answer at all."""
    with pytest.raises(RequestError, match="2 blanks"):
        model.score("[MASK] and [MASK]", ["the"])
    with pytest.raises(RequestError, match="no blank"):
        model.score("the cat", ["the"])
    with pytest.raises(RequestError, match="must be a list of one text or more"):
        model.score("the [MASK]", [])
    with pytest.raises(RequestError, match=r"51 positions.*at most 40"):
        model.score("the [MASK]", ["the", "z" * 50])
    with pytest.raises(RequestError, match="'' has no tokens"):
        model.score("the [MASK]", ["the", ""])


def test_folder_without_a_tokenizer(tmp_path):
    """A checkpoint without vocabulary files fails at loading, or with an AttributeError."""
    write_checkpoint(tmp_path / "model", "hf")
    model = openglm.load(tmp_path / "model", device="cpu")
    assert not model.has_tokenizer
    for call in (
        lambda: model.fill("[MASK]"),
        lambda: model.generate("a"),
        lambda: list(model.stream("a")),
        lambda: model.score("[MASK]", ["a"]),
    ):
        with pytest.raises(TokenizerError, match="no tokenizer files") as error:
            call()
        assert "tokenizer=" in error.value.hint
    assert torch.isfinite(model.logits(torch.tensor([[1, 2]]))).all()


def test_tokenizer_of_another_model(mini, tmp_path):
    """Ids beyond the network's vocabulary give an IndexError in the middle of a request."""
    write_checkpoint(tmp_path / "model", "hf")  # 60 rows
    with pytest.raises(OpenGLMError, match=r"400.*60"):
        openglm.load(tmp_path / "model", device="cpu", tokenizer=mini.path.parent)


# ------------------------------------------------------------------ logits

IDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": IDS[0]}, r"input_ids has shape \(3,\)"),
        ({"input_ids": IDS.float()}, "input_ids has dtype torch.float32"),
        ({"input_ids": IDS - 2}, "input_ids has values from -1 to 4; this model takes 0 to 431"),
        ({"input_ids": IDS + 426}, "input_ids has values from 427 to 432"),
        ({"position_ids": IDS[:1]}, r"position_ids has shape \(1, 3\), input_ids \(2, 3\)"),
        ({"position_ids": IDS + 35}, "position_ids has values from 36 to 41.*0 to 40"),
        ({"block_position_ids": IDS - 2}, "block_position_ids has values from -1"),
        ({"block_position_ids": IDS.bool()}, "block_position_ids has dtype torch.bool"),
        ({"mask": torch.ones(2, 3, dtype=torch.bool)}, r"mask has shape \(2, 3\).*\(2, 3, 3\)"),
        ({"mask": torch.ones(2, 3, 4, dtype=torch.bool)}, r"mask has shape \(2, 3, 4\)"),
        ({"mask": torch.ones(2, 3, 3)}, "mask has .* dtype torch.float32"),
        ({"mask": torch.ones(2, 3, 3, dtype=torch.int64)}, r"mask has shape \(2, 3, 3\)"),
        ({"mask": torch.tensor([3])}, r"mask has shape \(1,\)"),
        ({"mask": torch.tensor([-1, 2])}, "mask has values from -1 to 2.*0 to 3"),
        ({"mask": torch.tensor([1, 4])}, "mask has values from 1 to 4.*0 to 3"),
    ],
)
def test_bad_tensors_are_named(changes, message, model):
    """A wrong tensor gives an IndexError of torch, or numbers that mean nothing."""
    with pytest.raises(RequestError, match=message):
        model.logits(**{"input_ids": IDS} | changes)


def test_a_mask_must_cover_the_cached_tokens(model):
    """A mask over the new tokens only is broadcast over the cached ones."""
    cache = model.new_cache(2, 6)
    model.logits(IDS, cache=cache)
    with pytest.raises(RequestError, match=r"\(B, T, S\) is \(2, 3, 6\)"):
        model.logits(IDS, mask=torch.ones(2, 3, 3, dtype=torch.bool), cache=cache)


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_a_cache_of_another_batch_size(batch_size, model):
    """Two rows are written into a cache of other rows, or one row over all of them."""
    cache = model.new_cache(batch_size, 6)
    with pytest.raises(RequestError, match=f"2 rows.*{batch_size}"):
        model.logits(IDS, cache=cache)


def test_one_row_is_not_spread_over_the_cache(model):
    """One row of ids silently gives as many rows of logits as the cache has."""
    with pytest.raises(RequestError, match=r"1 rows?.*2"):
        model.logits(IDS[:1], cache=model.new_cache(2, 6))


def test_default_positions_go_on_behind_the_cache(model):
    """Decoding without positions starts again at position 0."""
    cache = model.new_cache(2, 6)
    model.logits(IDS, cache=cache)
    found = model.logits(IDS, cache=cache)
    expected = model.logits(torch.cat([IDS, IDS], dim=1))[:, 3:]
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_network_of_more_positions_than_given_ids_ends_in_an_error(model):
    """Positions beyond the table give an IndexError when they were not given."""
    with pytest.raises(RequestError, match="position_ids has values from 0 to 41"):
        model.logits(torch.ones(1, 42, dtype=torch.int64))


@pytest.mark.parametrize("prompt", [None, ["a [MASK]"], 3, b"a [MASK]"])
def test_a_prompt_is_a_text(prompt, model):
    """A list of texts gives an AttributeError."""
    for call in (model.fill, model.generate):
        with pytest.raises(RequestError, match="not a text"):
            call(prompt)
    with pytest.raises(RequestError, match="must be a list of one text or more"):
        model.score("a [MASK]", "blue")
    with pytest.raises(RequestError, match="1 is not a text"):
        model.score("a [MASK]", [1])
    for penalty in ("x", math.nan, 1e9):
        with pytest.raises(RequestError, match="length_penalty="):
            model.score("a [MASK]", ["b"], length_penalty=penalty)
