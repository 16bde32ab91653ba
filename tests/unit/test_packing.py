"""Packing documents into sequences, cut at sentence ends."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from helpers_data import CLS, ENDS, EOS, cut_up, packed, store
from openglm.data.packing import Packer, document_ranges
from openglm.data.sentences import align_end, align_start, sentence_end_table

LENGTH = 64


def prose(size: int, rng: np.random.Generator) -> list[int]:
    """Tokens with a sentence end after every one to eight others, and at the end."""
    tokens: list[int] = []
    while len(tokens) < size:
        words = rng.integers(1, 9)
        tokens += [int(rng.integers(0, 10)) * 10 + n for n in range(1, words + 1)]
        tokens.append(int(rng.integers(0, 10)) * 10)
    return tokens


def packer(folder: Path, documents: list[list[int]], mid_sentence_start: float = 0.0) -> Packer:
    stores = [store(folder / "tales", documents)]
    return Packer.build(stores, [1.0], LENGTH, CLS, EOS, ENDS, mid_sentence_start)


@pytest.fixture
def tales(tmp_path: Path) -> list[list[int]]:
    """Documents from a few tokens to several times the sequence length, all different."""
    rng = np.random.default_rng(0)
    return [prose(size, rng) for size in (3, 20, 40, 61, 62, 63, 64, 100, 300, 500)]


def parts_of(sequence: np.ndarray) -> list[list[int]]:
    """What stands behind each [CLS]."""
    places = np.flatnonzero(sequence == CLS)
    return [part[1:].tolist() for part in np.split(sequence, places[1:])]


def place_in(part: list[int], documents: list[list[int]]) -> tuple[list[int], int]:
    """The document that a part is cut from, and where; eos must be the document's own end."""
    for document in documents:
        whole = [*document, EOS]
        for start in range(len(whole) - len(part) + 1):
            if whole[start : start + len(part)] == part:
                return whole, start
    raise AssertionError(f"{part} is not a piece of a document")


def test_sequences_are_full_and_never_too_long(tmp_path: Path, tales: list[list[int]]) -> None:
    """A sequence would overflow the position table, or much of each batch would be padding."""
    draw = packer(tmp_path, tales).draw
    for seed in range(200):
        sequence = draw(np.random.default_rng(seed))
        assert LENGTH - 16 < len(sequence) <= LENGTH
        assert sequence[0] == CLS
        assert sequence[-1] != CLS


def test_documents_are_cut_at_sentence_ends(tmp_path: Path, tales: list[list[int]]) -> None:
    """The model would learn texts that begin or end in the middle of a sentence."""
    draw = packer(tmp_path, tales).draw
    starts: Counter[bool] = Counter()
    cut_to_the_end = 0
    for seed in range(200):
        for part in parts_of(draw(np.random.default_rng(seed))):
            whole, start = place_in(part, tales)
            assert start == 0 or ENDS[whole[start - 1]]
            assert part[-1] == EOS or ENDS[part[-1]]
            starts[start == 0] += 1
            cut_to_the_end += start > 0 and part[-1] == EOS
    assert min(starts.values()) > 20, "long documents are read from their middle too"
    assert cut_to_the_end > 5, "and to their end mark"


def test_starts_move_to_a_boundary_on_either_side(tmp_path: Path) -> None:
    """The text right behind the first boundaries would be seen more often than the rest."""
    rng = np.random.default_rng(0)
    endless = [int(token) * 10 + 1 for token in rng.integers(0, 10, 200)]
    endless[99] = 10  # the one sentence end; a start moves by at most 31 of 63 tokens
    draw = packer(tmp_path, [endless]).draw
    starts = Counter(
        place_in(part, [endless])[1]
        for seed in range(300)
        for part in parts_of(draw(np.random.default_rng(seed)))
        if len(part) > 32
    )
    assert starts[100] > 20
    left, right = range(69, 99), range(101, 131)
    assert any(starts[n] for n in left), "looked leftwards from before the boundary: not moved"
    assert any(starts[n] for n in right), "looked rightwards from behind the boundary: not moved"


def test_a_start_inside_a_sentence_is_possible_when_asked_for(
    tmp_path: Path, tales: list[list[int]]
) -> None:
    """`mid_sentence_start` would be ignored."""
    draw = packer(tmp_path, tales, mid_sentence_start=1.0).draw
    inside = 0
    for seed in range(50):
        for part in parts_of(draw(np.random.default_rng(seed))):
            whole, start = place_in(part, tales)
            inside += start > 0 and not ENDS[whole[start - 1]]
    assert inside > 20


def test_text_without_sentence_ends_is_packed_too(tmp_path: Path) -> None:
    """Word lists or code would be dropped or cut to nothing."""
    endless = [1 + n % 9 for n in range(500)]
    sequence = packer(tmp_path, [endless]).draw(np.random.default_rng(0))
    assert len(sequence) == LENGTH
    assert not ENDS[sequence].any()


def share_of_first(packer: Packer, marker: int) -> float:
    """The share of parts that hold `marker`, over 600 draws."""
    holds = [
        marker in part
        for seed in range(600)
        for part in parts_of(packer.draw(np.random.default_rng(seed)))
    ]
    return sum(holds) / len(holds)


def test_weights_are_how_often_the_text_of_a_source_is_seen(tmp_path: Path) -> None:
    """The mix of a training run would not be the one configured."""
    stores = [store(tmp_path / str(n), [[n] * (LENGTH - 2)] * 5) for n in (1, 2)]
    mixed = Packer.build(stores, [3.0, 1.0], LENGTH, CLS, EOS, ENDS)
    # 600 draws of one part each: the standard deviation is 0.018.
    assert share_of_first(mixed, 1) == pytest.approx(0.75, abs=0.06)


def test_long_documents_are_drawn_as_often_as_they_have_windows(tmp_path: Path) -> None:
    """Tokens of long books would hardly be seen, or those of short texts."""
    window = LENGTH - 2
    stores = [
        store(tmp_path / "book", [[1] * (10 * window)]),
        store(tmp_path / "notes", [[2] * window] * 10),
        store(tmp_path / "empty", []),
    ]
    mixed = Packer.build(stores, [1.0, 1.0, 1.0], LENGTH, CLS, EOS, ENDS)
    # 600 draws of one part each: the standard deviation is 0.02.
    assert share_of_first(mixed, 1) == pytest.approx(0.5, abs=0.07)


def test_every_document_can_be_drawn(tmp_path: Path) -> None:
    """A source behind another one would be read at shifted places, and its last text never."""
    stores = [
        store(tmp_path / "a", [[1, 1], [2, 2]]),
        store(tmp_path / "none", []),
        store(tmp_path / "b", [[3, 3], [4, 4], [5, 5]]),
    ]
    draw = Packer.build(stores, [1.0, 1.0, 1.0], LENGTH, CLS, EOS, ENDS).draw
    seen = {
        tuple(part) for seed in range(20) for part in parts_of(draw(np.random.default_rng(seed)))
    }
    assert seen == {(n, n, EOS) for n in range(1, 6)}


# ------------------------------------------------------------------ cutting


def test_sentence_ends_are_the_official_marks() -> None:
    """Chinese text would be one endless sentence, or words would count as sentence ends."""
    ending = [".", "?", "!", ";", ":", "\n", "。", "？", "！", "；", "…", " end.", "3.14", "...\n"]
    others = ["", "the", ",", "，", "、", "-", "'", "：", " "]
    assert sentence_end_table([*ending, *others]).tolist() == [True] * 14 + [False] * 9


@pytest.mark.parametrize(
    ("start", "reach", "leftwards", "moved"),
    [
        (5, 3, True, 4),  # behind the end at 3
        (4, 3, True, 4),  # already there
        (3, 3, True, 0),  # the beginning of the text is a boundary
        (8, 3, True, 8),  # nothing in reach: stays
        (5, 4, False, 9),  # behind the end at 8
        (5, 3, False, 5),  # nothing in reach
        (9, 3, False, 9),  # the last token is no place to start behind
    ],
)
def test_a_start_moves_to_the_nearest_boundary_in_reach(
    start: int, reach: int, leftwards: bool, moved: int
) -> None:
    """Texts would begin one token before or behind a sentence, or with nothing left."""
    ends = np.zeros(12, dtype=bool)
    ends[[3, 8, 11]] = True
    assert align_start(ends, start, reach, leftwards) == moved


@pytest.mark.parametrize(
    ("length", "shortest", "end"),
    [(12, 6, 12), (11, 6, 9), (8, 4, 8), (8, 3, 4), (3, 0, 3), (9, 9, 9)],
)
def test_an_end_moves_back_to_a_boundary_unless_too_much_is_lost(
    length: int, shortest: int, end: int
) -> None:
    """Texts would end inside a sentence, or lose most of their tokens for a boundary."""
    ends = np.zeros(12, dtype=bool)
    ends[[3, 8, 11]] = True
    assert align_end(ends, length, shortest) == end


def test_a_sequence_is_recut_at_its_sentence_ends() -> None:
    """Short training sequences would end inside sentences or lack their [CLS]."""
    tokens = packed([1, 2, 3, 10, 4, 5, 6, 7, 20, 8, 9])
    pieces = [piece.tolist() for piece in cut_up(tokens, 8, 5)]
    assert pieces == [[CLS, 1, 2, 3, 10], [CLS, 4, 5, 6, 7, 20], [CLS, 8, 9, EOS]]
    assert len(cut_up(tokens, 8, 2)) == 2


def test_a_document_that_ends_where_a_piece_ends_keeps_its_end_mark() -> None:
    """The next short sequence would begin with an empty document, `[CLS] eos`."""
    tokens = packed([1, 2, 3, 4, 5, 10], [6, 7, 8, 9, 10])
    for length in (8, 9, 10):
        pieces = [piece.tolist() for piece in cut_up(tokens, length, 5)]
        assert pieces == [[CLS, 1, 2, 3, 4, 5, 10, EOS], [CLS, 6, 7, 8, 9, 10, EOS]]


def test_document_ranges_leave_out_the_frame() -> None:
    """Blanks would be put over [CLS] or the end marks."""
    assert document_ranges(packed([1, 2], [3], []), CLS, EOS).tolist() == [[1, 3], [5, 6]]
    cropped = packed([1, 2], [3, 4])[:-1]
    assert document_ranges(cropped, CLS, EOS).tolist() == [[1, 3], [5, 7]]
