"""Filling, generating, streaming and scoring on tiny networks, against full forward passes."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch

from helpers_models import (
    context_of,
    full_log_probabilities,
    mask_positions,
    random_model,
    scripted_model,
    tiny_config,
)
from openglm.engine import decoder as decoder_module
from openglm.engine.decoder import Decoder
from openglm.language_model import LanguageModel

ROWS = 432
"""Rows of the networks' vocabulary; the `mini` tokenizer has 400 tokens."""
TEXT = "the [MASK] sat on [sMASK] and the [gMASK]"
BYTES = "a🙂é世z"  # 🙂 is four byte pieces


@pytest.fixture(scope="module")
def model(mini):
    config = tiny_config(vocab_size=ROWS, max_position_embeddings=64)
    return LanguageModel(random_model(config, seed=3), mini, "random")


@pytest.fixture
def scripted(mini):
    """Makes a model that writes the given tokens into every blank, then ends it."""

    def make(script, after=None):
        config = tiny_config(vocab_size=ROWS, hidden_size=48, intermediate_size=192)
        after = mini.special.eop_id if after is None else after
        return LanguageModel(scripted_model(config, script, after), mini, "scripted")

    return make


def greedy_by_full_passes(model, text, max_tokens):
    """What fill should give: each next token from a full pass over everything before it."""
    special = model.tokenizer.special
    allowed = torch.full((ROWS,), -torch.inf)
    allowed[: model.tokenizer.vocab_size] = 0
    allowed[list(special.ids - special.end_ids)] = -torch.inf
    context = context_of(model, text)
    blanks, means = [], []
    for position in mask_positions(model, context):
        tokens, log_p = [], []
        blanks.append((position, tokens))
        while len(tokens) < max_tokens:
            last = full_log_probabilities(model, context, blanks)[-1]
            token = int((last + allowed).argmax())
            if token in special.end_ids:
                break
            tokens.append(token)
            log_p.append(float(last[token]))
        means.append(sum(log_p) / len(log_p) if log_p else math.nan)
    return [tokens for _, tokens in blanks], means


# ------------------------------------------------------------------ fill


def test_fill_equals_full_passes_without_a_cache(model):
    """A blank is filled under wrong positions, or without seeing the context or earlier blanks."""
    expected, means = greedy_by_full_passes(model, TEXT, max_tokens=5)
    filled = model.fill(TEXT, max_tokens=5)
    assert [blank.token_ids for blank in filled.blanks] == expected
    found = [blank.log_probability for blank in filled.blanks]
    assert found == pytest.approx(means, abs=1e-5, nan_ok=True)


def test_later_blanks_see_earlier_ones(model):
    """The blanks of one text are filled independently and do not fit each other."""
    context = context_of(model, TEXT)
    first, second, _ = mask_positions(model, context)
    rows = [
        full_log_probabilities(model, context, [(first, tokens), (second, [])])[-1]
        for tokens in ([65], [66])
    ]
    assert not torch.allclose(*rows, atol=0.05)  # so the comparison above proves it
    scores = {
        letter: model.score(TEXT.replace("[MASK]", letter).replace("[gMASK]", ""), ["the"])[0].score
        for letter in "xy"
    }
    assert scores["x"] != pytest.approx(scores["y"], abs=1e-3)


def test_filled_text_puts_the_blanks_into_their_places(scripted, mini):
    """The text that comes back has its blanks in wrong places or words glued together."""
    word = mini.encode(" fox")
    filled = scripted(word).fill("the [MASK] sat on [sMASK], and [gMASK]")
    assert filled.text == "the fox sat on fox, and fox"
    assert [blank.text for blank in filled.blanks] == [" fox"] * 3
    assert {blank.finish_reason for blank in filled.blanks} == {"stop"}


def test_an_empty_blank(scripted):
    """A blank that the model leaves empty crashes, or has a made-up probability."""
    filled = scripted([]).fill("the [MASK] sat")
    assert filled.text == "the sat"
    assert filled.blanks[0].token_ids == []
    assert math.isnan(filled.blanks[0].log_probability)


@pytest.mark.parametrize("end", ["eop", "eos"])
def test_both_end_tokens_end_a_blank(end, scripted, mini):
    """A continuation that ends its document runs on into another document."""
    word = mini.encode("fox")
    model = scripted(word, after=mini.special.get(end).id)
    blank = model.fill("the [MASK]").blanks[0]
    assert (blank.token_ids, blank.finish_reason) == (word, "stop")


@pytest.mark.parametrize("num_beams", [1, 3])
def test_max_tokens_limits_each_blank(num_beams, scripted, mini):
    """Blanks are longer than asked, or a cut one claims to be complete."""
    word = mini.encode("z")[0]
    model = scripted([], after=word)
    filled = model.fill("the [MASK] and [MASK]", max_tokens=3, num_beams=num_beams)
    assert [blank.token_ids for blank in filled.blanks] == [[word] * 3] * 2
    assert {blank.finish_reason for blank in filled.blanks} == {"length"}


def test_min_tokens_keeps_a_blank_open(scripted, mini):
    """min_tokens has no effect on the text."""
    blank = scripted([]).fill("the [MASK]", min_tokens=2, max_tokens=4).blanks[0]
    assert len(blank.token_ids) >= 2
    assert not set(blank.token_ids) & mini.special.end_ids


def test_beams_find_a_likelier_text_than_greedy(mini):
    """Beam search gives text that is no better, or reports probabilities of another text."""
    network = random_model(tiny_config(vocab_size=ROWS, max_position_embeddings=64), seed=1)
    network.final_norm.weight.mul_(0.3)  # a flat distribution, where greedy is short-sighted
    network.final_norm.bias.mul_(0.3)
    model = LanguageModel(network, mini, "flat")
    text, options = "the [MASK] sat on [MASK]", {"min_tokens": 4, "max_tokens": 4}
    context = context_of(model, text)
    places = mask_positions(model, context)
    sums = {}
    for num_beams in (1, 8):
        blanks = model.fill(text, num_beams=num_beams, **options).blanks
        filled = list(zip(places, (blank.token_ids for blank in blanks), strict=True))
        for number, blank in enumerate(blanks, start=1):
            log_p = full_log_probabilities(model, context, filled[:number])[-5:-1]
            chosen = log_p[range(4), blank.token_ids]
            assert blank.log_probability == pytest.approx(float(chosen.mean()), abs=1e-5)
        sums[num_beams] = blanks[0].log_probability
    assert sums[8] > sums[1] + 1e-3


def test_rows_that_stand_for_nothing_are_never_chosen(mini):
    """A padded vocabulary row or a command token is generated, and decoding crashes."""
    config = tiny_config(vocab_size=ROWS, max_position_embeddings=64)
    network = random_model(config)
    special = mini.special
    forbidden = [*range(mini.vocab_size, ROWS), *(special.ids - special.end_ids)]
    network.word_embeddings.weight[forbidden] = 50.0 * network.final_norm.bias  # the likeliest
    model = LanguageModel(network, mini, "rigged")
    raw = model.logits(torch.tensor([context_of(model, TEXT)]))
    assert set(raw.argmax(-1).flatten().tolist()) <= set(forbidden)
    for options in ({}, {"temperature": 5.0, "seed": 1}, {"num_beams": 3}):
        filled = model.fill(TEXT, max_tokens=6, **options)
        chosen = [token for blank in filled.blanks for token in blank.token_ids]
        assert chosen
        assert not set(chosen) & set(forbidden)


def test_the_unused_id_of_the_chinese_tokenizers_is_never_chosen(chinese):
    """Id 50005, between the command tokens, is generated, and decoding it crashes."""
    unused = chinese.num_text_tokens + 5
    assert unused not in chinese.special.ids
    config = tiny_config(vocab_size=ROWS, hidden_size=48, intermediate_size=192)
    model = LanguageModel(scripted_model(config, [], after=unused), chinese, "scripted")
    assert unused not in model.fill("黄 [MASK]", max_tokens=2).blanks[0].token_ids


# ------------------------------------------------------------------ generate and stream


def test_generate_continues_behind_a_long_blank(model):
    """The prompt of a continuation is laid out differently than the official one."""
    expected, means = greedy_by_full_passes(model, "the cat[gMASK]", 6)
    done = model.generate("the cat", temperature=0, max_tokens=6)
    assert [done.token_ids] == expected
    assert done.log_probability == pytest.approx(means[0], abs=1e-5, nan_ok=True)


def test_generate_without_a_long_blank_uses_the_short_one(bert):
    """BERT models, which only know [MASK], get a prompt that they were not trained with."""
    config = tiny_config(vocab_size=ROWS)
    model = LanguageModel(random_model(config), bert, "random")
    context = [bert.special.cls_id, *bert.encode("the cat"), bert.special.mask_id]
    done = model.generate("the cat", temperature=0, min_tokens=3, max_tokens=3)
    log_p = full_log_probabilities(
        model, [*context, bert.special.eos_id], [(len(context) - 1, done.token_ids)]
    )[-4:-1]
    expected = log_p[range(3), done.token_ids].mean()
    assert done.log_probability == pytest.approx(float(expected), abs=1e-5)
    (blank,) = model.fill("the cat [MASK]", min_tokens=3, max_tokens=3).blanks
    assert blank.token_ids == done.token_ids
    assert blank.log_probability == pytest.approx(done.log_probability, abs=1e-5)


def test_written_command_tokens_are_text(model):
    """A user's text can end the prompt or open a blank by writing a command token."""
    text = "the <|endofpiece|>[CLS] cat"
    special = model.tokenizer.special
    assert not set(model.tokenizer.encode(text)) & special.ids
    whole = model.generate(text + " [MASK]", temperature=0, max_tokens=4)
    plain = [special.cls_id, *model.tokenizer.encode(text + " [MASK]"), special.gmask_id]
    row = full_log_probabilities(model, plain, [(len(plain) - 1, whole.token_ids[:-1])])[-1]
    alone = full_log_probabilities(model, plain, [(len(plain) - 1, whole.token_ids)])
    chosen = alone[len(plain) : len(plain) + 4].gather(1, torch.tensor(whole.token_ids)[:, None])
    assert whole.log_probability == pytest.approx(float(chosen.mean()), abs=1e-5)
    assert int(row.argmax()) == whole.token_ids[-1]


def test_a_seed_repeats_a_request(model):
    """A text cannot be had again, although its seed was reported."""
    first = model.generate("the cat", max_tokens=20)
    again = model.generate("the cat", max_tokens=20, seed=first.seed)
    assert again == first
    assert model.generate("the cat", max_tokens=20).token_ids != first.token_ids


@pytest.mark.parametrize("seed", range(6))
def test_streamed_pieces_make_up_the_generated_text(seed, model):
    """Streamed text differs from what the same request returns whole."""
    options = {"temperature": 2.0, "top_k": 0, "max_tokens": 40, "seed": seed}
    pieces = list(model.stream("the cat", **options))
    assert "".join(pieces) == model.generate("the cat", **options).text
    assert len(pieces) > 3


@pytest.mark.parametrize("num_beams", [1, 2])
def test_streamed_pieces_of_blanks_belong_to_their_blank(num_beams, model):
    """A streamed piece is attributed to another blank."""
    options = {"max_tokens": 6, "num_beams": num_beams, "min_tokens": 3}
    texts = defaultdict(str)
    for piece in model.stream_fill(TEXT, **options):
        texts[piece.blank] += piece.text
    assert [texts[i] for i in range(3)] == [b.text for b in model.fill(TEXT, **options).blanks]


def test_no_piece_has_half_a_character(scripted, mini):
    """The user sees replacement characters flicker while an emoji is being written."""
    script = mini.encode(BYTES)
    assert len(script) >= len(BYTES) + 3
    pieces = list(scripted(script).stream("the", temperature=0))
    assert pieces == list(BYTES)


def test_a_character_that_is_never_finished_is_not_dropped(scripted, mini):
    """A cut character disappears from the stream, but not from the whole text."""
    model = scripted(mini.encode("a🙂"))
    options = {"temperature": 0, "max_tokens": 3}
    assert list(model.stream("the", **options)) == ["a", "\ufffd"]
    assert model.generate("the", **options).text == "a\ufffd"


# ------------------------------------------------------------------ score


@pytest.mark.parametrize("length_penalty", [0.0, 0.7])
def test_score_equals_full_passes(length_penalty, model):
    """Answers are ranked by other numbers than their log-probability with the end token."""
    choices = ["the fox", "d", "red water", "🙂"]
    context = context_of(model, "a [MASK] cat")
    (place,) = mask_positions(model, context)
    for found in model.score("a [MASK] cat", choices, length_penalty=length_penalty):
        ids = [*model.tokenizer.encode(found.choice), model.tokenizer.special.eop_id]
        log_p = full_log_probabilities(model, context, [(place, ids[:-1])])[-len(ids) :]
        expected = log_p[range(len(ids)), ids]
        assert found.log_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        total = float(expected.sum()) / len(ids) ** length_penalty
        assert found.score == pytest.approx(total, abs=1e-4)


def test_unidirectional_score_equals_full_passes(model):
    """Left-to-right scores see the answer, or are taken at a wrong place."""
    special, encode = model.tokenizer.special, model.tokenizer.encode
    text = encode("the river flows")
    for found in model.score("the river flows", [" into the sea", "z"], unidirectional=True):
        ids = encode(found.choice)
        log_p = full_log_probabilities(
            model, [special.cls_id, special.gmask_id], [(1, [*text, *ids])]
        )[-len(ids) - 1 : -1]
        expected = log_p[range(len(ids)), ids]
        assert found.log_probabilities == pytest.approx(expected.tolist(), abs=1e-5)
        assert found.score == pytest.approx(float(expected.sum()), abs=1e-4)


def test_causal_contexts_read_in_pieces_equal_one_piece(monkeypatch):
    """A long prompt of a causal model is read wrongly at the border of two pieces."""
    model = random_model(tiny_config(position="rotary"))
    ids = torch.arange(23)[None]
    whole = Decoder(model, ids, 1, is_causal=True).feed_blank([5], 22, 1, True)
    monkeypatch.setattr(decoder_module, "READ_AT_ONCE", 5)
    pieces = Decoder(model, ids, 1, is_causal=True).feed_blank([5], 22, 1, True)
    torch.testing.assert_close(pieces, whole, atol=1e-5, rtol=0)
    whole_prefix = Decoder(model, ids, 1).feed_blank([5], 22, 1, True)
    assert not torch.allclose(whole_prefix, whole)
