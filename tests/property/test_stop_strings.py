"""Stop strings are found however the text is cut into tokens, and nothing of them is streamed."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from openglm.engine.text_stream import TextStream, first_stop, held_back
from openglm.tokenizers import Tokenizer

TEXTS = st.text("ab#é", max_size=14)
STOPS = st.lists(st.text("ab#é", min_size=1, max_size=4), max_size=3)


class Pieces:
    """A tokenizer whose ids are indices into a list of byte strings."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    settled = Tokenizer.settled

    def decode(self, ids, special=False):
        return b"".join(self.pieces[i] for i in ids).decode("utf-8", errors="replace")


def streamed(pieces: list[bytes], stop, min_tokens=0) -> tuple[list[str], TextStream, int]:
    """Pieces of text, the stream, and how many tokens were read."""
    text = TextStream(Pieces(pieces), stop, min_tokens)
    out, read = [], 0
    for token in range(len(pieces)):
        out.append(text.push(token))
        read += 1
        if text.is_stopped:
            break
    return [*out, text.finish()], text, read


def cut(raw: bytes, places) -> list[bytes]:
    """`raw` in pieces."""
    borders = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in pairwise(borders)]


def by_character(text: str, stop) -> tuple[str, bool]:
    """What is left of a text that is read character by character."""
    for end in range(1, len(text) + 1):
        hits = [one for one in stop if text[:end].endswith(one)]
        if hits:
            return text[: end - max(map(len, hits))], True
    return text, False


@given(TEXTS, STOPS, st.lists(st.integers(0, 40), max_size=12))
@example("ab#ab", ["#a", "b#ab"], [2])
@example("aab", ["aab", "ab"], [])
@example("é#é", ["#é"], [1, 3])
def test_any_cut_gives_the_same_text(text, stop, places):
    """A stop string across the border of two tokens is missed, or the text depends on the cut."""
    expected, is_stopped = by_character(text, stop)
    pieces, stream, _ = streamed(cut(text.encode(), places), stop)
    assert "".join(pieces) == stream.text == expected
    assert stream.is_stopped == is_stopped


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_split_of_one_stop_string(size):
    """A certain split of a stop string is missed."""
    text, stop = "say ###end", "###e"
    for start in range(size):
        places = range(start, len(text), size)
        pieces, stream, read = streamed(cut(text.encode(), places), [stop])
        assert (stream.text, stream.is_stopped) == ("say ", True)
        assert "#" not in "".join(pieces)
        assert read <= len(text)


@given(TEXTS, STOPS)
def test_no_piece_comes_late(text, stop):
    """Text that can be no part of a stop string any more is held back."""
    stream = TextStream(Pieces([c.encode() for c in text]), stop)
    for token in range(len(text)):
        stream.push(token)
        if stream.is_stopped:
            return
        read = text[: token + 1]
        starts = [n for n in range(len(read) + 1) if any(s.startswith(read[n:]) for s in stop)]
        assert stream.text == read[: min(starts, default=len(read))]


@given(TEXTS, STOPS)
def test_what_is_held_back_begins_a_stop_string(text, stop):
    """The end of a text is held back for nothing."""
    size = held_back(text, stop)
    assert size == 0 or any(one.startswith(text[-size:]) for one in stop)


def test_min_tokens_lets_earlier_stop_strings_pass():
    """A text ends before min_tokens, or at once when min_tokens is reached."""
    pieces, stream, read = streamed([b"a#", b"b", b"#", b"c"], ["#"], min_tokens=3)
    assert ("".join(pieces), read) == ("a#b", 3)
    _, stream, read = streamed([b"a#", b"b"], ["#"], min_tokens=2)
    assert (stream.text, stream.is_stopped, read) == ("a#b", False, 2)


def test_the_one_that_is_complete_first_counts():
    """The order in which stop strings are given matters."""
    for stop in (["b", "abc"], ["abc", "b"]):
        assert first_stop("xabc", stop) == 2
    assert first_stop("xab", ["b", "ab"]) == 1  # of two that end together the longer
    assert first_stop("xab", ["b"], start=3) is None
