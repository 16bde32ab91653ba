"""Objectives: which blanks are made, of what, and how often."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from helpers_data import CLS, ENDS, EOS, SPECIAL, packed, rebuild, text
from openglm.data.blank_infilling import Example
from openglm.data.objectives import BlankInfilling, ObjectiveConfig
from openglm.errors import ConfigError
from openglm.tokenizers.special import SpecialTokens, layout

ONLY = {
    "token": {"token": 1.0, "sentence": 0.0, "document": 0.0},
    "sentence": {"token": 0.0, "sentence": 1.0, "document": 0.0},
    "document": {"token": 0.0, "sentence": 0.0, "document": 1.0},
}


def objective(special: SpecialTokens = SPECIAL, **options: Any) -> BlankInfilling:
    """An objective without dBLOCK and short sequences, unless asked for."""
    plain = {"hidden_input": 0.0, "short_sequence": 0.0}
    return BlankInfilling(ObjectiveConfig(**plain | options), special, ENDS, 256)


def masks_of(example: Example) -> set[str]:
    """The roles of the mask tokens in the context."""
    ids = set(example.input_ids[: example.context_length].tolist())
    return {token.role for token in SPECIAL.mask_tokens if token.id in ids}


# ------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": 0.6}, r"token \+ sentence \+ document is 1\.1; it must be 1"),
        ({"token": 1.5, "sentence": -0.5, "document": 0.0}, r"objective\.token=1\.5 must be betw"),
        ({"mask_ratio": 1.1}, r"objective\.mask_ratio=1\.1 must be between 0 and 1"),
        ({"hidden_input": float("nan")}, r"objective\.hidden_input=nan must be between 0 and 1"),
        ({"mean_span_length": 0.0}, r"objective\.mean_span_length=0\.0 must be"),
        ({"mean_span_length": float("nan")}, r"objective\.mean_span_length=nan must be"),
        ({"mean_span_length": 1000.0}, r"objective\.mean_span_length=1000\.0 must be"),
    ],
)
def test_impossible_mixes_are_refused(options: dict[str, float], message: str) -> None:
    """A run would train for days with another mix than asked for, or on NaN span lengths."""
    with pytest.raises(ConfigError, match=message):
        ObjectiveConfig(**options)  # type: ignore[arg-type]


def test_objectives_are_mixed_as_configured() -> None:
    """A model would see hardly any long blanks, though the configuration asks for them."""
    made = objective(token=0.5, sentence=0.3, document=0.2)
    rng = np.random.default_rng(0)
    counts: Counter[str] = Counter()
    for _ in range(600):
        roles = set().union(*(masks_of(e) for e in made.batch([text(60, 1), text(60, 2)], rng)))
        assert len(roles) == 1, "one objective per batch, as in the official code"
        counts.update(roles)
    # 600 draws: the standard deviation of each share is at most 0.02.
    assert counts["mask"] / 600 == pytest.approx(0.5, abs=0.06)
    assert counts["smask"] / 600 == pytest.approx(0.3, abs=0.06)
    assert counts["gmask"] / 600 == pytest.approx(0.2, abs=0.06)


# ------------------------------------------------------------------ token blanks


def test_token_blanks_cover_the_share_of_the_text() -> None:
    """Fewer tokens than 15 % would be learned from per step."""
    for seed in range(20):
        tokens = text(198, seed)
        example = objective().token_blanks(tokens, np.random.default_rng(seed))
        assert example is not None
        num_blanks = np.count_nonzero(example.block_position_ids == 1)
        assert example.loss_mask.sum() - num_blanks >= 30  # 15 % of 200
        assert rebuild(example, SPECIAL.mask_id, SPECIAL.eop_id) == tokens.tolist()


def test_a_single_span_is_one_span() -> None:
    """`single_span` would do nothing."""
    made = objective(**ONLY["token"], single_span=1.0)
    for seed in range(20):
        (example,) = made.batch([text(100, seed)], np.random.default_rng(seed))
        assert np.count_nonzero(example.block_position_ids == 1) == 1


def test_blanks_are_shuffled_unless_told_otherwise() -> None:
    """Models would be trained in reading order only, or `shuffle_spans = false` be ignored."""

    def order(shuffle: bool) -> list[list[int]]:
        made = objective(**ONLY["token"], shuffle_spans=shuffle)
        examples = made.batch([text(100, n) for n in range(8)], np.random.default_rng(0))
        return [e.position_ids[e.block_position_ids == 1].tolist() for e in examples]

    assert all(row == sorted(row) for row in order(shuffle=False))
    assert any(row != sorted(row) for row in order(shuffle=True))


def test_hidden_inputs_are_token_blank_inputs_only() -> None:
    """[dBLOCK] would be learned as a target, or show up in sentence and document blanks."""
    (example,) = objective(**ONLY["token"], hidden_input=1.0).batch(
        [text(100)], np.random.default_rng(0)
    )
    hidden = example.input_ids == SPECIAL.dblock_id
    np.testing.assert_array_equal(hidden, example.block_position_ids > 1)
    assert rebuild(example, SPECIAL.mask_id, SPECIAL.eop_id) == text(100).tolist()
    for name in ("sentence", "document"):
        (other,) = objective(**ONLY[name], hidden_input=1.0).batch(
            [text(100)], np.random.default_rng(0)
        )
        assert SPECIAL.dblock_id not in other.input_ids


def test_a_share_of_the_inputs_is_hidden() -> None:
    """All or no inputs would be hidden instead of one in four."""
    made = objective(hidden_input=0.25)
    examples = [made.token_blanks(text(200, n), np.random.default_rng(n)) for n in range(40)]
    inputs = np.concatenate([e.input_ids[e.block_position_ids > 1] for e in examples if e])
    # 40 x 30 inputs: the standard deviation is 0.0125.
    assert np.mean(inputs == SPECIAL.dblock_id) == pytest.approx(0.25, abs=0.05)


def test_tokenizers_without_dblock_can_be_trained() -> None:
    """Pretraining GLM-Base or GLM-Large with BERT's vocabulary would crash in its first step."""
    bert = layout("bert").resolve(100)
    tokens = np.concatenate([[bert.cls_id], np.arange(1, 90), [bert.eos_id]])
    example = objective(bert).token_blanks(tokens, np.random.default_rng(0))
    assert example is not None
    assert rebuild(example, bert.mask_id, bert.eop_id) == tokens.tolist()
    with pytest.raises(ConfigError, match="hidden_input"):
        objective(bert, hidden_input=0.1)


# ------------------------------------------------------------------ sentence blanks


def test_sentence_blanks_are_whole_sentences() -> None:
    """Sentence training would cut sentences apart, or join two documents."""
    tokens = packed([1, 2, 10, 3, 4, 20, 5], [6, 30, 7, 8, 9, 40])
    allowed = {(1, 2, 10), (3, 4, 20), (6, 30), (7, 8, 9, 40)}
    seen = set()
    for seed in range(40):
        example = objective().sentence_blanks(tokens, np.random.default_rng(seed))
        assert example is not None
        assert masks_of(example) == {"smask"}
        assert rebuild(example, SPECIAL.smask_id, SPECIAL.eop_id) == tokens.tolist()
        part_b = example.targets[example.context_length :].tolist()
        seen.add(tuple(part_b[:-1]))  # one sentence is more than 15 % of 17 tokens
        assert part_b[-1] == SPECIAL.eop_id
    assert seen == allowed, "[5] is a fragment cut off by eos, never a sentence"


def test_sentence_blanks_cover_the_share_of_the_text() -> None:
    """Only one sentence of a long text would be masked."""
    tokens = packed([n for s in range(40) for n in (1, 2, 3, 10)])
    example = objective(mask_ratio=0.5).sentence_blanks(tokens, np.random.default_rng(0))
    assert example is not None
    assert np.count_nonzero(example.block_position_ids == 1) == 21  # int(0.5 * 162) / 4, up


def test_a_text_without_a_sentence_is_dropped_and_the_others_kept() -> None:
    """One odd document would empty or crash a whole batch."""
    whole, broken = packed([1, 2, 10]), packed([1, 2, 3])
    made = objective(**ONLY["sentence"]).batch([broken, whole], np.random.default_rng(0))
    assert [rebuild(e, SPECIAL.smask_id, SPECIAL.eop_id) for e in made] == [whole.tolist()]


# ------------------------------------------------------------------ document blanks


def test_several_documents_get_a_tail_that_ends_with_eos() -> None:
    """Long generation would learn `eop` instead of the text's own end, or be trained on [CLS]."""
    tokens = packed([1, 2, 3, 4], [5, 6, 7])
    example = objective(document_infill=1.0).document_blank(tokens, 7, np.random.default_rng(0))
    gmask, sop = SPECIAL.gmask_id, SPECIAL.sop_id
    assert example.input_ids.tolist() == [CLS, 1, 2, 3, gmask, sop, 4, EOS, CLS, 5, 6, 7]
    assert example.targets.tolist() == [CLS, 1, 2, 3, gmask, 4, EOS, CLS, 5, 6, 7, EOS]
    assert example.loss_mask.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 1]
    assert SPECIAL.eop_id not in example.targets


def test_one_document_gets_a_tail_or_an_inner_blank() -> None:
    """`document_infill` would be ignored: no infilling, or no continuation is learned."""
    tokens = text(40)
    ends = Counter()
    for seed in range(400):
        rng = np.random.default_rng(seed)
        example = objective(document_infill=0.25).document_blank(tokens, 12, rng)
        assert masks_of(example) == {"gmask"}
        end = int(example.targets[-1])
        ends[end] += 1
        inside = example.targets[example.context_length : -1]
        assert len(inside) == (12 if end == SPECIAL.eop_id else 11)
        assert not np.isin(inside, (CLS, EOS)).any()
    assert set(ends) == {EOS, SPECIAL.eop_id}
    # 400 draws: the standard deviation is 0.022.
    assert ends[SPECIAL.eop_id] / 400 == pytest.approx(0.25, abs=0.07)


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("infill", [0.0, 1.0])
def test_a_short_document_keeps_its_frame(size: int, infill: float) -> None:
    """A blank longer than the text would take `[CLS]` or the end mark away, or crash."""
    tokens = text(size)
    made = objective(document_infill=infill)
    for seed in range(10):
        example = made.document_blank(tokens, 500, np.random.default_rng(seed))
        assert example.input_ids[0] == CLS
        blank = example.targets[example.context_length :].tolist()
        if infill:
            assert rebuild(example, SPECIAL.gmask_id, SPECIAL.eop_id) == tokens.tolist()
            assert EOS not in blank
        else:
            assert blank == tokens[-len(blank) :].tolist()


# ------------------------------------------------------------------ positions and lengths


def test_random_positions_shift_everything_by_one_amount_within_the_tables() -> None:
    """Positions would run out of the model's table, or part B would lose its masks."""
    tokens, plain = text(100), objective(**ONLY["token"])
    config = ObjectiveConfig(**ONLY["token"], short_sequence=0.0, random_position=True)
    shifted = BlankInfilling(config, SPECIAL, ENDS, 128)
    offsets = set()
    for seed in range(60):
        (example,) = shifted.batch([tokens], np.random.default_rng(seed))
        offset = int(example.position_ids[0])
        offsets.add(offset)
        length = example.context_length
        assert (example.position_ids[:length] - offset).tolist() == list(range(length))
        assert set(example.position_ids[length:]) <= set(example.position_ids[:length])
        assert example.position_ids.max() < 128
        (fixed,) = plain.batch([tokens], np.random.default_rng(seed))
        assert fixed.position_ids[0] == 0
    assert len(offsets) > 10


def test_short_sequences_are_pieces_of_the_text() -> None:
    """The short inputs that users type would never be seen in training."""
    made = objective(**ONLY["token"], short_sequence=1.0)
    lengths = set()
    for seed in range(30):
        tokens = text(198, seed)
        for example in made.batch([tokens], np.random.default_rng(seed)):
            piece = rebuild(example, SPECIAL.mask_id, SPECIAL.eop_id)
            lengths.add(len(piece))
            assert piece[0] == CLS
            assert "," + ",".join(map(str, piece[1:])) in "," + ",".join(map(str, tokens))
    assert max(lengths) < 200
    assert len(lengths) > 20
