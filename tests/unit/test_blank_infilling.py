"""Building examples: every number recorded from the official data construction is reproduced."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers_data import rows
from openglm.data.batches import collate
from openglm.data.blank_infilling import (
    Example,
    continuation,
    infill,
    masked_lm,
    place_spans,
    sample_span_lengths,
    sample_spans,
    span_length_weights,
)

GOLDENS = Path(__file__).parent.parent / "goldens" / "glm"
CASES = json.loads((GOLDENS / "data_construction.json").read_text())
IDS = CASES["special_token_ids"]
MASK_OF_TASK = {"bert": IDS["MASK"], "gap_sentence": IDS["sMASK"], "generation": IDS["gMASK"]}


def array(values: list[Any]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def built(case: dict[str, Any]) -> Example:
    """The example that a recorded case of make_block_data asks for."""
    options = dict(case["options"])
    assert options.pop("shuffle_blocks", False) is False
    hidden = None
    if "block_mask_prob" in options:
        hidden = np.array(options.pop("mask_draws")) < options.pop("block_mask_prob")
    (offset,) = options.pop("randrange") if options.pop("random_position", False) else (0,)
    block_positions = options.pop("block_position_encoding", True)
    assert not options, f"options that this test does not know: {options}"
    return infill(
        array(case["tokens"]),
        array(case["spans"]),
        None if case["span_order"] is None else array(case["span_order"]),
        mask_id=MASK_OF_TASK[case["task"]],
        sop_id=IDS["sop"],
        eop_id=IDS["eop"],
        position_offset=offset,
        block_positions=block_positions,
        hidden_inputs=hidden,
        hidden_id=IDS["dBLOCK"],
    )


def assert_recorded(example: Example, expected: dict[str, Any]) -> None:
    """All arrays are equal to the recorded ones."""
    found = rows(example)
    assert found == {name: expected[name] for name in found}
    assert example.context_length == expected["sep"]


@pytest.mark.parametrize("case", CASES["make_block_data"], ids=lambda case: case["name"])
def test_blanks_are_built_as_in_the_official_code(case: dict[str, Any]) -> None:
    """Training would teach another format than the one that official checkpoints know."""
    assert_recorded(built(case), case["expected"])


def test_building_a_blank_leaves_the_text_alone() -> None:
    """The next blank made from the same cached text would find masks in it."""
    case = CASES["make_block_data"][0]
    tokens = array(case["tokens"])
    infill(tokens, array(case["spans"]), None, mask_id=1, sop_id=2, eop_id=3)
    assert tokens.tolist() == case["tokens"]


@pytest.mark.parametrize("case", CASES["long_generation"])
def test_long_generation_is_built_as_in_the_official_code(case: dict[str, Any]) -> None:
    """[gMASK] would be trained with another end mark or other positions than officially."""
    example = continuation(
        array(case["tokens"]),
        array(case["loss_mask_in"]),
        case["division"],
        gmask_id=IDS["gMASK"],
        sop_id=IDS["sop"],
    )
    assert_recorded(example, case["expected"])
    assert len(case["tokens"]) - case["division"] == case["generation_length"]


def test_the_loss_of_a_continuation_is_that_of_the_document() -> None:
    """A document's prompt part, or the [CLS] of the next document, would be trained on."""
    tokens = array([303, 5, 6, 300, 303, 7, 8, 300])
    loss_mask = array([0, 1, 1, 1, 0, 1, 1, 1])
    example = continuation(tokens, loss_mask, 2, gmask_id=IDS["gMASK"], sop_id=IDS["sop"])
    assert example.targets.tolist() == [303, 5, IDS["gMASK"], 6, 300, 303, 7, 8, 300]
    assert example.loss_mask.tolist() == [0, 0, 0, 1, 1, 0, 1, 1, 1]


def test_masked_lm_is_built_as_in_the_official_code() -> None:
    """The BERT-style objective would predict shifted tokens."""
    case = CASES["masked_lm"]
    example = masked_lm(array(case["tokens"]), array(case["spans"]), mask_id=IDS["MASK"])
    found = rows(example)
    assert found.pop("block_position_ids") == [0] * len(case["tokens"])
    assert found == {name: case["expected"][name] for name in found}
    assert example.context_length == len(case["tokens"])


def test_span_lengths_have_the_official_weights() -> None:
    """Spans would be longer or shorter than those the published models were trained with."""
    recorded = CASES["block_length_weights_1_to_39_unnormalised"]
    # scipy's pmf goes through exp(gammaln); both are within some 1e-14 of the exact value.
    np.testing.assert_allclose(span_length_weights(3.0), recorded, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", CASES["sample_spans"])
def test_draws_become_spans_as_in_the_official_code(case: dict[str, Any]) -> None:
    """Spans would touch, or lie elsewhere than the official code puts them."""
    lengths, draws = array(case["span_lengths"]), array(case["draws"])
    assert place_spans(lengths, case["offset"], draws).tolist() == case["expected"]


class Recorded:
    """A generator that gives recorded draws, unsorted, and notes the bounds it is asked for."""

    def __init__(self, draws: list[int]) -> None:
        self.draws = draws
        self.bounds: list[tuple[int, int]] = []

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        self.bounds.append((low, high))
        assert size == len(self.draws)
        return array(self.draws[::-1])


@pytest.mark.parametrize("case", CASES["sample_spans"][:2])
def test_spans_are_drawn_from_the_official_range(case: dict[str, Any]) -> None:
    """The last places of a document would never be masked, or spans would run out of it."""
    rng = Recorded(case["draws"])
    document = array([[case["offset"], case["offset"] + case["total_length"]]])
    spans = sample_spans(array(case["span_lengths"]), document, 0.15, rng)  # type: ignore[arg-type]
    assert spans is not None
    assert spans.tolist() == case["expected"]
    assert rng.bounds == [(0, case["draw_range_exclusive"])]


@pytest.mark.parametrize(
    ("lengths", "size", "fits"), [([3, 2], 7, True), ([3, 2], 6, False), ([5], 5, False)]
)
def test_spans_that_leave_no_room_are_refused(lengths: list[int], size: int, fits: bool) -> None:
    """A sample would lose spans, or spans would touch; officially it is dropped."""
    rng = np.random.default_rng(0)
    spans = sample_spans(array(lengths), array([[4, 4 + size]]), 0.15, rng)
    assert (spans is not None) is fits


def test_span_lengths_follow_the_weights() -> None:
    """A slip of one in the table would make every span a token longer or shorter."""
    weights = span_length_weights()
    cumulative = np.cumsum(weights) / weights.sum()
    lengths = sample_span_lengths(40_000, cumulative, np.random.default_rng(0))
    expected = float((weights * np.arange(1, 40)).sum() / weights.sum())
    assert expected == pytest.approx(3 / (1 - np.exp(-3)), rel=1e-9)
    # 40000 / 3.16 draws of standard deviation 1.6: the mean is within 0.015 (one sigma).
    assert lengths.mean() == pytest.approx(expected, abs=0.06)
    assert sample_span_lengths(0, cumulative, np.random.default_rng(0)).tolist() == []


# ------------------------------------------------------------------ whole recorded batches


@pytest.fixture(scope="module")
def recorded() -> Callable[[str], dict[str, np.ndarray]]:
    """Reads a recorded forward pass, of which only the inputs matter here."""

    def read(name: str) -> dict[str, np.ndarray]:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            return {key: arrays[key] for key in arrays.files if not key.startswith("logits")}

    return read


def expected_row(arrays: dict[str, np.ndarray], row: int = 0) -> dict[str, Any]:
    """One row of a recorded batch in the form of the JSON goldens."""
    names = ("input_ids", "targets", "loss_mask")
    both = arrays["position_ids"][row].tolist()
    return {name: arrays[name][row].tolist() for name in names} | {
        "position_ids": both[0],
        "block_position_ids": both[1],
        "sep": arrays["sep"][row],
    }


def test_the_inputs_of_the_recorded_logits_are_built(
    recorded: Callable[[str], dict[str, np.ndarray]],
) -> None:
    """The network's goldens would be right and the training inputs still wrong."""
    arrays = recorded("full_mask_2blanks")
    marks = {"mask_id": IDS["MASK"], "sop_id": IDS["sop"], "eop_id": IDS["eop"]}
    two = infill(arrays["source_tokens"], arrays["spans"], arrays["span_order"], **marks)
    assert_recorded(two, expected_row(arrays))

    arrays = recorded("full_gmask")
    tokens = np.concatenate([arrays["prefix"], arrays["target_part"]])
    long = continuation(
        tokens,
        np.ones_like(tokens),
        len(arrays["prefix"]),
        gmask_id=IDS["gMASK"],
        sop_id=IDS["sop"],
    )
    assert_recorded(long, expected_row(arrays))


def test_a_batch_is_padded_as_in_the_official_code(
    recorded: Callable[[str], dict[str, np.ndarray]],
) -> None:
    """Padding would carry a loss, or two rows would be mixed up."""
    arrays = recorded("batch_two_seps")
    marks = {"mask_id": IDS["MASK"], "sop_id": IDS["sop"], "eop_id": IDS["eop"]}
    first = infill(arrays["source_a"], array([[2, 4], [6, 9]]), array([1, 0]), **marks)
    second = infill(arrays["source_b"], array([[5, 8]]), None, **marks)
    batch = collate([first, second])
    for name, expected in {
        "input_ids": arrays["input_ids"],
        "targets": arrays["targets"],
        "loss_mask": arrays["loss_mask"],
        "position_ids": arrays["position_ids"][:, 0],
        "block_position_ids": arrays["position_ids"][:, 1],
    }.items():
        found = getattr(batch, name).copy()  # our batches may have more padding, all zero
        np.testing.assert_array_equal(found[:2, :17], expected)
        found[:2, :17] = 0
        assert not found.any()
    np.testing.assert_array_equal(batch.context_lengths[:2], arrays["sep"])
    assert not batch.context_lengths[2:].any()
    assert batch.num_targets == 11
