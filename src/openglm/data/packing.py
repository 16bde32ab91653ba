"""Packing documents into sequences: `[CLS] doc eos [CLS] doc eos ...`, cut at sentence ends.

A document is drawn with a probability proportional to the number of windows it fills, so that
every token of a source is seen equally often. (The official code draws in proportion to the
length and so sees the tokens of long documents more often than those of short ones.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openglm.data.blank_infilling import Ids
from openglm.data.sentences import align_end, align_start
from openglm.data.token_store import TokenStore

SHORTEST_REST = 16
"""A rest of a sequence shorter than this stays empty."""


@dataclass(frozen=True, slots=True)
class Packer:
    """Draws packed sequences from weighted token stores.

    Args:
        stores: one per source.
        weights: how often the text of each source is seen, relative to the others.
        sequence_length: tokens per packed sequence.
        cls_id: first token of a document.
        eos_id: end mark of a document.
        sentence_ends: (V,) bool table of tokens that end a sentence.
        mid_sentence_start: probability that a cut document may start inside a sentence.
    """

    stores: list[TokenStore]
    cumulative: NDArray[np.float64]
    first_document: NDArray[np.int64]
    sequence_length: int
    cls_id: int
    eos_id: int
    sentence_ends: NDArray[np.bool_]
    mid_sentence_start: float

    @classmethod
    def build(
        cls,
        stores: list[TokenStore],
        weights: list[float],
        sequence_length: int,
        cls_id: int,
        eos_id: int,
        sentence_ends: NDArray[np.bool_],
        mid_sentence_start: float = 0.0,
    ) -> Packer:
        """Precomputes the drawing table; see the class for the arguments."""
        windows = [
            weight * np.maximum(1.0, store.lengths / (sequence_length - 2))
            for store, weight in zip(stores, weights, strict=True)
        ]
        cumulative = np.cumsum(np.concatenate(windows))
        counts = [len(store) for store in stores]
        return cls(
            stores=stores,
            cumulative=cumulative / cumulative[-1],
            first_document=np.cumsum([0, *counts[:-1]]),
            sequence_length=sequence_length,
            cls_id=cls_id,
            eos_id=eos_id,
            sentence_ends=sentence_ends,
            mid_sentence_start=mid_sentence_start,
        )

    def draw(self, rng: np.random.Generator) -> Ids:
        """One packed sequence of at most `sequence_length` tokens."""
        parts: list[Ids] = []
        room = self.sequence_length
        while room >= SHORTEST_REST:
            body = self._crop(np.append(self._document(rng), self.eos_id), room - 1, rng)
            parts.append(np.concatenate([[self.cls_id], body]))
            room -= len(body) + 1
        return np.concatenate(parts)

    def _document(self, rng: np.random.Generator) -> Ids:
        index = int(np.searchsorted(self.cumulative, rng.random(), side="right"))
        source = int(np.searchsorted(self.first_document, index, side="right")) - 1
        return self.stores[source][index - int(self.first_document[source])]

    def _crop(self, body: Ids, length: int, rng: np.random.Generator) -> Ids:
        """Cuts a document to `length`: a random start and an end, both at sentence ends."""
        if len(body) <= length:
            return body
        ends = self.sentence_ends[body]
        start = int(rng.integers(0, len(body) - length + 1))
        if rng.random() >= self.mid_sentence_start:
            start = align_start(ends, start, length // 2, leftwards=rng.random() < 0.5)
        cut = body[start : start + length]
        if cut[-1] == self.eos_id:
            return cut
        return cut[: align_end(ends[start : start + length], len(cut), len(cut) // 2)]


def document_ranges(tokens: Ids, cls_id: int, eos_id: int) -> Ids:
    """(d, 2) [start, end) of the runs of text between `[CLS]` and `eos` in a packed sequence."""
    is_text = (tokens != cls_id) & (tokens != eos_id)
    edges = np.diff(np.concatenate([[0], is_text.view(np.int8), [0]]))
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return np.stack([starts, stops], axis=1)


def recut(
    tokens: Ids,
    length: int,
    pieces: int,
    sentence_ends: NDArray[np.bool_],
    cls_id: int,
    eos_id: int,
) -> list[Ids]:
    """Cuts a packed sequence into `pieces` short ones that end at sentence ends where possible.

    Each piece has at most `length` tokens and starts with `[CLS]`.
    """
    is_eos = tokens == eos_id
    ends = sentence_ends[tokens] & ~np.append(is_eos[1:], False) | is_eos  # never before an eos
    cut: list[Ids] = []
    start = 0
    while len(cut) < pieces and start < len(tokens):
        has_cls = tokens[start] == cls_id
        body = tokens[start : start + length - (not has_cls)]
        if start + len(body) < len(tokens):
            body = body[: align_end(ends[start : start + len(body)], len(body), len(body) // 2)]
        start += len(body)
        if start < len(tokens) and is_eos[start]:
            start += 1  # cut right before an end mark: a piece never begins with one
        cut.append(body if has_cls else np.concatenate([[cls_id], body]))
    return cut
