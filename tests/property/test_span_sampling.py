"""Span sampling and packing conserve the text, whatever the documents, spans and seeds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_data import CLS, EOS, SPECIAL, cut_up, packed, rebuild
from openglm.data.blank_infilling import (
    infill,
    sample_span_lengths,
    sample_spans,
    span_length_weights,
)
from openglm.data.packing import document_ranges

NUM_TEXT_TOKENS = 100
MASK, EOP, DBLOCK = SPECIAL.mask_id, SPECIAL.eop_id, SPECIAL.dblock_id
MARKS = {"mask_id": MASK, "sop_id": SPECIAL.sop_id, "eop_id": EOP}
WEIGHTS = span_length_weights()
CUMULATIVE = np.cumsum(WEIGHTS) / WEIGHTS.sum()

seeds = st.integers(min_value=0, max_value=2**32 - 1)
document_sizes = st.lists(st.integers(min_value=1, max_value=80), min_size=1, max_size=6)


def documents_of(sizes: list[int], seed: int, has_last_eos: bool = True) -> np.ndarray:
    """`[CLS] doc eos [CLS] doc eos ...` of random tokens, of which one in ten ends a sentence."""
    rng = np.random.default_rng(seed)
    tokens = packed(*(rng.integers(0, NUM_TEXT_TOKENS, size).tolist() for size in sizes))
    return tokens if has_last_eos else tokens[:-1]


@st.composite
def texts_with_spans(draw: st.DrawFn, smallest_gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, and spans in random order with at least `smallest_gap` tokens between them."""
    pairs = draw(
        st.lists(st.tuples(st.integers(smallest_gap, 5), st.integers(1, 6)), min_size=1, max_size=8)
    )
    spans, place = [], draw(st.integers(0, 3))
    for index, (gap, length) in enumerate(pairs):
        place += gap if index else 0
        spans.append((place, place + length))
        place += length
    tokens = np.arange(place + draw(st.integers(0, 3)), dtype=np.int64) % NUM_TEXT_TOKENS
    return tokens, np.array(draw(st.permutations(spans)), dtype=np.int64)


# ------------------------------------------------------------------ from spans to an example


@settings(max_examples=150)
@given(case=texts_with_spans(smallest_gap=0), seed=seeds, offset=st.integers(0, 9))
def test_the_text_can_be_rebuilt_from_an_example(
    case: tuple[np.ndarray, np.ndarray], seed: int, offset: int
) -> None:
    """Tokens would get lost or doubled, or a blank would point at another blank's mask."""
    tokens, spans = case
    order = np.random.default_rng(seed).permutation(len(spans))
    example = infill(tokens, spans, order, **MARKS, position_offset=offset)
    length = example.context_length
    assert example.position_ids[:length].tolist() == list(range(offset, offset + length))
    assert not example.block_position_ids[:length].any()
    assert length == len(tokens) - np.diff(spans).sum() + len(spans)
    assert rebuild(infill(tokens, spans, order, **MARKS), MASK, EOP) == tokens.tolist()

    blanks = slice(length, None)
    assert example.loss_mask.tolist() == [0] * length + [1] * (len(example.targets) - length)
    starts = example.block_position_ids[blanks] == 1
    assert (example.input_ids[blanks][starts] == SPECIAL.sop_id).all()
    assert starts.sum() == len(spans)
    inside = np.flatnonzero(~starts) + length  # each input is the target one place before
    np.testing.assert_array_equal(example.input_ids[inside], example.targets[inside - 1])


@settings(max_examples=100)
@given(case=texts_with_spans(smallest_gap=1), seed=seeds)
def test_hiding_inputs_changes_nothing_but_those_inputs(
    case: tuple[np.ndarray, np.ndarray], seed: int
) -> None:
    """[dBLOCK] would become a target, or replace `sop` or the context."""
    tokens, spans = case
    rng = np.random.default_rng(seed)
    order, hidden = rng.permutation(len(spans)), rng.random(np.diff(spans).sum()) < 0.5
    plain = infill(tokens, spans, order, **MARKS)
    masked = infill(tokens, spans, order, **MARKS, hidden_inputs=hidden, hidden_id=DBLOCK)
    np.testing.assert_array_equal(masked.targets, plain.targets)
    span_inputs = np.flatnonzero(plain.block_position_ids > 1)
    expected = plain.input_ids.copy()
    expected[span_inputs[hidden]] = DBLOCK
    np.testing.assert_array_equal(masked.input_ids, expected)


# ------------------------------------------------------------------ from documents to spans


@given(total=st.integers(1, 300), seed=seeds)
def test_span_lengths_reach_the_share_and_stop_there(total: int, seed: int) -> None:
    """Less than 15 % of the text would be trained on, or spans would be drawn without need."""
    lengths = sample_span_lengths(total, CUMULATIVE, np.random.default_rng(seed))
    assert lengths.sum() >= total > lengths[:-1].sum()
    assert lengths.min() >= 1
    assert lengths.max() <= 39


def check_spans(spans: np.ndarray, lengths: np.ndarray, tokens: np.ndarray, ratio: float) -> None:
    """Spans of the drawn lengths inside documents, apart from each other; short ones spared."""
    spans = spans[np.argsort(spans[:, 0])]
    assert sorted(np.diff(spans).ravel().tolist()) == sorted(lengths.tolist())
    assert (spans[1:, 0] > spans[:-1, 1]).all(), "spans touch"
    for start, stop in spans:
        assert not np.isin(tokens[start:stop], (CLS, EOS)).any(), "a span leaves its document"
    documents = document_ranges(tokens, CLS, EOS)
    for start, stop in documents[np.argsort(np.diff(documents).ravel(), kind="stable")][:-1]:
        inside = spans[(spans[:, 0] >= start) & (spans[:, 1] <= stop)]
        assert np.diff(inside).sum() <= int(ratio * (stop - start)), "a short document is over-full"


@settings(max_examples=150)
@given(sizes=document_sizes, seed=seeds, has_last_eos=st.booleans())
def test_spans_stay_inside_documents_and_never_touch(
    sizes: list[int], seed: int, has_last_eos: bool
) -> None:
    """A blank would swallow `[CLS]` or the end mark, or join two documents."""
    tokens = documents_of(sizes, seed, has_last_eos)
    rng = np.random.default_rng(seed)
    total = max(1, int(0.15 * len(tokens)))
    lengths = sample_span_lengths(total, CUMULATIVE, rng)
    spans = sample_spans(lengths, document_ranges(tokens, CLS, EOS), 0.15, rng)
    if spans is not None:
        check_spans(spans, lengths, tokens, 0.15)
        assert np.diff(spans).sum() >= total
    else:
        assert lengths.sum() + len(lengths) > max(sizes), "dropped though it fits"


@settings(max_examples=150)
@given(sizes=document_sizes, seed=seeds, ratio=st.floats(0.0, 1.0))
def test_every_allowed_mask_ratio_gives_valid_spans_or_none(
    sizes: list[int], seed: int, ratio: float
) -> None:
    """A run with a mask_ratio that the configuration accepts would crash at some step."""
    tokens = documents_of(sizes, seed)
    rng = np.random.default_rng(seed)
    lengths = sample_span_lengths(max(1, int(ratio * len(tokens))), CUMULATIVE, rng)
    spans = sample_spans(lengths, document_ranges(tokens, CLS, EOS), ratio, rng)
    if spans is not None:
        check_spans(spans, lengths, tokens, ratio)


# ------------------------------------------------------------------ documents in a sequence


@given(tokens=st.lists(st.sampled_from([1, 2, 3, CLS, EOS]), max_size=40))
def test_document_ranges_are_the_runs_of_text(tokens: list[int]) -> None:
    """A blank would be placed over a command token, or part of a document never masked."""
    expected, start = [], None
    for place, token in enumerate([*tokens, EOS]):
        if token in (CLS, EOS):
            if start is not None:
                expected.append([start, place])
            start = None
        elif start is None:
            start = place
    found = document_ranges(np.array(tokens, dtype=np.int64), CLS, EOS)
    assert found.tolist() == expected


@settings(max_examples=150)
@given(sizes=document_sizes, seed=seeds, length=st.integers(32, 90), pieces=st.integers(1, 6))
def test_recutting_keeps_lengths_and_text(
    sizes: list[int], seed: int, length: int, pieces: int
) -> None:
    """Short sequences would be too long for the model, or their text would be garbled."""
    tokens = documents_of(sizes, seed)
    cut = cut_up(tokens, length, pieces)
    assert 1 <= len(cut) <= pieces
    assert all(len(piece) <= length and piece[0] == CLS for piece in cut)
    text = [token for token in tokens.tolist() if token < NUM_TEXT_TOKENS]
    kept = [token for piece in cut for token in piece.tolist() if token < NUM_TEXT_TOKENS]
    assert kept == text[: len(kept)]
    if len(cut) < pieces:
        assert kept == text, "text was lost though there was room for more pieces"


@settings(max_examples=150)
@given(sizes=document_sizes, seed=seeds, length=st.integers(32, 90))
def test_recutting_makes_no_empty_documents(sizes: list[int], seed: int, length: int) -> None:
    """The model would learn that a text may end before it begins."""
    for piece in cut_up(documents_of(sizes, seed), length, 6):
        after_cls = [*piece[1:].tolist(), EOS]
        for place in np.flatnonzero(piece == CLS):
            assert after_cls[place] < NUM_TEXT_TOKENS, piece.tolist()
