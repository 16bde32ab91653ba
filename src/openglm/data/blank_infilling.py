"""Autoregressive blank infilling: from a token sequence and spans to one training example.

Spans are cut out of the text and replaced by one mask token each (part A, the context, which sees
itself whole); behind it each span follows as `sop t1 ... tn` with targets `t1 ... tn eop` (part B,
causal). Position ids say where in the corrupted text a token is, block position ids where inside
its blank (GLM paper, sections 2.1 and 2.2).

    text      x1 x2 x3 x4 x5 x6      spans [2,3) and [4,6), order 1, 0
    input     x1 x2 M  x4 M   sop x5 x6  sop x3
    target    x1 x2 M  x4 M   x5  x6 eop x3  eop
    position  0  1  2  3  4   4   4  4   2   2
    block     0  0  0  0  0   1   2  3   1   2

All functions are pure; randomness comes in as arguments.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence; every array is (T,) int64."""

    input_ids: Ids
    targets: Ids
    loss_mask: Ids
    position_ids: Ids
    block_position_ids: Ids
    context_length: int
    """Number of leading tokens that see each other (`sep` in the official code)."""


def infill(
    tokens: Ids,
    spans: Ids,
    order: Ids | None,
    *,
    mask_id: int,
    sop_id: int,
    eop_id: int,
    position_offset: int = 0,
    block_positions: bool = True,
    hidden_inputs: NDArray[np.bool_] | None = None,
    hidden_id: int | None = None,
) -> Example:
    """Builds the example that asks for `spans` of `tokens`.

    Args:
        tokens: (N,) the text.
        spans: (n, 2) non-touching [start, end) pairs.
        order: (n,) the order of the spans in part B; None = left to right.
        mask_id: the token that stands for a span in the context.
        sop_id: start-of-piece token.
        eop_id: end-of-piece token.
        position_offset: constant added to every position id (`random_position`).
        block_positions: False gives block position 1 to all of part B.
        hidden_inputs: (sum of span lengths,) in part-B order; True = show `hidden_id` instead of
            the span token as input, the target stays (dBLOCK masking).
        hidden_id: the token for it.
    """
    context, kept = _corrupt(tokens, spans, mask_id)
    num_context = len(context)

    ordered = spans[np.argsort(spans[:, 0])] if order is None else spans[order]
    lengths = ordered[:, 1] - ordered[:, 0]
    first = np.cumsum(lengths + 1) - (lengths + 1)  # where each blank begins in part B
    inside = np.arange(int(lengths.sum()) + len(lengths)) - np.repeat(first, lengths + 1)
    source = np.repeat(ordered[:, 0], lengths + 1) + inside  # the token a place must produce
    last = first + lengths
    targets = tokens[np.minimum(source, len(tokens) - 1)]
    targets[last] = eop_id
    inputs = np.empty_like(targets)
    inputs[1:] = targets[:-1]
    if hidden_inputs is not None:
        shown = inputs[inside > 0]
        shown[hidden_inputs] = hidden_id
        inputs[inside > 0] = shown
    inputs[first] = sop_id

    mask_positions = np.searchsorted(kept, ordered[:, 0])
    num_blank = len(targets)
    position_ids = np.empty(num_context + num_blank, dtype=np.int64)
    position_ids[:num_context] = np.arange(num_context)
    position_ids[num_context:] = np.repeat(mask_positions, lengths + 1)
    block_position_ids = np.zeros(num_context + num_blank, dtype=np.int64)
    block_position_ids[num_context:] = inside + 1 if block_positions else 1
    loss_mask = np.zeros(num_context + num_blank, dtype=np.int64)
    loss_mask[num_context:] = 1
    return Example(
        input_ids=np.concatenate([context, inputs]),
        targets=np.concatenate([context, targets]),
        loss_mask=loss_mask,
        position_ids=position_ids + position_offset,
        block_position_ids=block_position_ids,
        context_length=num_context,
    )


def _corrupt(tokens: Ids, spans: Ids, mask_id: int) -> tuple[Ids, Ids]:
    """The context with one mask token per span, and the index in `tokens` of each of its tokens."""
    covered = np.zeros(len(tokens) + 1, dtype=np.int64)
    covered[spans[:, 0] + 1] += 1  # the first token of a span stays, as the mask
    np.add.at(covered, spans[:, 1], -1)
    kept = np.flatnonzero(np.cumsum(covered[:-1]) == 0)
    corrupted = tokens.copy()
    corrupted[spans[:, 0]] = mask_id
    return corrupted[kept], kept


def continuation(
    tokens: Ids, loss_mask: Ids, division: int, *, gmask_id: int, sop_id: int
) -> Example:
    """Long generation: the text up to `division` is context, all behind it is the blank.

    The text's own end mark is the stop, so no `eop` is added; targets keep the document loss mask.
    """
    head, tail = tokens[:division], tokens[division:]
    num_context, num_blank = division + 1, len(tokens) - division
    position_ids = np.minimum(np.arange(num_context + num_blank), division)
    block_position_ids = np.zeros(num_context + num_blank, dtype=np.int64)
    block_position_ids[num_context:] = np.arange(1, num_blank + 1)
    context_mask = np.zeros(num_context, dtype=np.int64)
    return Example(
        input_ids=np.concatenate([head, [gmask_id, sop_id], tail[:-1]]),
        targets=np.concatenate([head, [gmask_id], tail]),
        loss_mask=np.concatenate([context_mask, loss_mask[division:]]),
        position_ids=position_ids,
        block_position_ids=block_position_ids,
        context_length=num_context,
    )


def masked_lm(tokens: Ids, spans: Ids, *, mask_id: int) -> Example:
    """BERT's objective: span tokens are masked in place and predicted in place."""
    loss_mask = np.zeros(len(tokens), dtype=np.int64)
    for start, end in spans:
        loss_mask[start:end] = 1
    return Example(
        input_ids=np.where(loss_mask == 1, mask_id, tokens),
        targets=tokens,
        loss_mask=loss_mask,
        position_ids=np.arange(len(tokens)),
        block_position_ids=np.zeros(len(tokens), dtype=np.int64),
        context_length=len(tokens),
    )


def span_length_weights(mean: float = 3.0, longest: int = 39) -> NDArray[np.float64]:
    """Poisson(mean) probabilities of span lengths 1 ... longest, not normalised."""
    return np.array(
        [
            np.exp(-mean) * mean**length / float(factorial(length))
            for length in range(1, longest + 1)
        ]
    )


def sample_span_lengths(
    total: int, cumulative: NDArray[np.float64], rng: np.random.Generator
) -> Ids:
    """Draws span lengths until their sum reaches `total`; the last one is not trimmed.

    Args:
        total: number of tokens to cover at least.
        cumulative: normalised cumulative weights of the lengths 1, 2, ... .
        rng: source of randomness.
    """
    if total <= 0:
        return np.empty(0, dtype=np.int64)
    lengths = np.searchsorted(cumulative, rng.random(total), side="right") + 1  # each is >= 1
    count = int(np.searchsorted(np.cumsum(lengths), total)) + 1
    return lengths[:count]


def place_spans(lengths: Ids, offset: int, draws: Ids) -> Ids:
    """Turns sorted `draws` from [0, length - sum - n + 1] into (n, 2) spans that never touch."""
    starts = offset + draws + np.cumsum(lengths + 1) - (lengths + 1)
    return np.stack([starts, starts + lengths], axis=1)


def sample_spans(
    lengths: Ids, documents: Ids, ratio: float, rng: np.random.Generator
) -> Ids | None:
    """Distributes spans over the documents of a packed sequence.

    Shorter documents come first and take spans while those cover at most `ratio` of them; the
    longest takes the rest. Returns (n, 2) spans, or None when they do not all fit.

    Args:
        lengths: (n,) span lengths in the order they were drawn.
        documents: (d, 2) [start, end) of the maskable tokens of each document.
        ratio: largest share of a shorter document that is masked.
        rng: source of randomness.
    """
    sizes = documents[:, 1] - documents[:, 0]
    by_size = np.argsort(sizes, kind="stable")
    cumulative = np.cumsum(lengths)
    placed = []
    done = 0
    for rank, document in enumerate(by_size):
        covered = cumulative[done - 1] if done else 0
        size = int(sizes[document])
        if rank == len(by_size) - 1:
            end = len(lengths)
            if cumulative[-1] - covered + (end - done) > size:
                return None
        else:
            end = int(np.searchsorted(cumulative, covered + int(ratio * size), side="right"))
        while end > done and cumulative[end - 1] - covered + (end - done - 1) > size:
            end -= 1  # only for ratios near 1: the gaps must fit, too
        if end > done:
            chosen = lengths[done:end]
            free = size - int(chosen.sum())
            draws = np.sort(rng.integers(0, free - len(chosen) + 2, len(chosen)))
            placed.append(place_spans(chosen, int(documents[document, 0]), draws))
            done = end
    return np.concatenate(placed) if done == len(lengths) else None
