"""What a network saw while it filled a text, as SVG: who attends to whom, and both positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from openglm.config import ModelConfig
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.sampling import Choice
from openglm.engine.writer import Track, Writer
from openglm.nn.masks import MaskSpec
from openglm.serve.web.form import Say
from openglm.serve.web.html import escaped

SIDE = 420  # of the mask, in units of the drawing
LABELS = 120  # left of it
CHART = 64  # height of the positions below
GAP = 22
MOST_LABELS = 40
"""Tokens up to which each is named."""
LABEL_CHARACTERS = 16
MOST_TOKENS = 2048
"""Tokens up to which a mask is drawn."""
CONTEXT = "#3b82f6"
BLANKS = ("#f97316", "#14b8a6", "#a855f7", "#eab308", "#ec4899")
"""Colours of blanks, in turn."""


def tint(blank: int) -> str:
    """The colour of a blank."""
    return BLANKS[blank % len(BLANKS)]


@dataclass(frozen=True, slots=True)
class Seen:
    """The last pass of a network over a text.

    Args:
        track: tokens and positions.
        visible: so many at its beginning see each other whole.
        blanks: those that were filled behind them in this pass, in this order.
    """

    track: Track
    visible: int
    blanks: Sequence[int]

    def mask(self) -> np.ndarray:
        """(T, T) bool: row attends to column."""
        count = len(self.track)
        spec = MaskSpec.prefix(torch.tensor([self.visible]))
        return spec.dense(count, count, torch.device("cpu"))[0].numpy()

    def parts(self) -> Iterator[tuple[int, int, str]]:
        """Start, end and colour of the text and of what was filled into each blank."""
        begun = [place for place, block in enumerate(self.track.blocks) if block == 1]  # at `sop`
        colours = [CONTEXT, *map(tint, self.blanks)]
        edges = pairwise([0, *begun, len(self.track)])
        for (start, end), colour in zip(edges, colours, strict=True):
            yield start, end, colour


def seen(
    config: ModelConfig, prompt: Prompt, params: SamplingParams, blanks: Sequence[Sequence[int]]
) -> Seen:
    """Replays how blanks were filled.

    Args:
        config: of the network.
        prompt: that was filled; not that of a causal model.
        params: with which.
        blanks: the tokens of each.
    """
    plain = SamplingParams(max_tokens=params.max_tokens)  # what is written is known
    writer = Writer(config, prompt, plain)
    filled: list[int] = []
    while not writer.done:
        index, track, visible = writer.index, writer.track, writer.visible
        filled = [*filled, index] if prompt.style == "grow" else [index]
        for token in blanks[index]:
            writer.take(Choice(token, 0.0))
        if writer.index == index and not writer.done:  # no longer than it may be
            writer.end("stop")
    return Seen(track, visible, filled)


def draw(found: Seen, names: Sequence[str], say: Say) -> str:
    """The picture.

    Args:
        found: what is drawn.
        names: of the tokens.
        say: chooses the language.
    """
    count = len(found.track)
    if count > MOST_TOKENS:
        return say(
            f"{count} tokens are too many to be drawn.", f"共 {count} 个词元，过多，无法绘图。"
        )
    is_named = count <= MOST_LABELS
    left = LABELS if is_named else GAP
    cell = SIDE / count
    drawn = [*_mask(found, left, cell), *_positions(found, left, cell, say)]
    if is_named:
        drawn += [*_grid(count, left, cell), *_names(names, left, cell)]
    width, height = left + SIDE + GAP, SIDE + 2 * GAP + CHART + 2 * GAP
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" xmlns="http://www.w3.org/2000/svg" '
        f'font-size="10" fill="currentColor">{"".join(drawn)}</svg>'
    )


def _mask(found: Seen, left: int, cell: float) -> Iterator[str]:
    """Each row's visible columns, as bars in the colours of what stands there."""
    mask = found.mask()
    for start, end, colour in found.parts():
        path = []
        for row, columns in enumerate(mask[:, start:end]):
            edges = np.flatnonzero(np.diff(np.concatenate(([0], columns, [0])).astype(np.int8)))
            for begin, stop in edges.reshape(-1, 2) + start:
                path.append(
                    f"M{left + begin * cell:.2f} {row * cell:.2f}h{(stop - begin) * cell:.2f}"
                    f"v{cell:.2f}h{(begin - stop) * cell:.2f}z"
                )
        yield f'<path d="{"".join(path)}" fill="{colour}" fill-opacity=".75"/>'
    yield (
        f'<rect x="{left}" y="0" width="{SIDE}" height="{SIDE}" fill="none" '
        'stroke="currentColor" stroke-opacity=".4"/>'
    )


def _grid(count: int, left: int, cell: float) -> Iterator[str]:
    lines = "".join(
        f"M{left} {i * cell:.2f}h{SIDE}M{left + i * cell:.2f} 0v{SIDE}" for i in range(1, count)
    )
    yield f'<path d="{lines}" stroke="currentColor" stroke-opacity=".15" stroke-width=".5"/>'


def _names(names: Sequence[str], left: int, cell: float) -> Iterator[str]:
    for row, name in enumerate(names):
        y = (row + 0.5) * cell + 3
        shown = escaped(name[:LABEL_CHARACTERS])
        yield f'<text x="{left - 6}" y="{y:.2f}" text-anchor="end">{shown}</text>'


def _positions(found: Seen, left: int, cell: float, say: Say) -> Iterator[str]:
    """Position and block position of each token, below its column."""
    track = found.track
    top = SIDE + 2 * GAP
    highest = max(1, *track.positions, *track.blocks)
    labels = (say("position", "位置"), say("block position", "空内位置"))
    for line, (label, values) in enumerate(
        zip(labels, (track.positions, track.blocks), strict=True)
    ):
        below = top + CHART + 14 + 13 * line
        dash = ' stroke-dasharray="2 2"' * line
        yield f'<text x="{left - 6}" y="{below}" text-anchor="end">{label}</text>'
        points = [
            (left + (i + 0.5) * cell, top + CHART * (1 - value / highest))
            for i, value in enumerate(values)
        ]
        for start, end, colour in found.parts():
            drawn = " ".join(f"{x:.2f},{y:.2f}" for x, y in points[start:end])
            yield f'<polyline points="{drawn}" fill="none" stroke="{colour}"{dash}/>'
            if len(points) <= MOST_LABELS:
                for (x, y), value in zip(points[start:end], values[start:end], strict=True):
                    yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="2" fill="{colour}"/>'
                    yield f'<text x="{x:.2f}" y="{below}" text-anchor="middle">{value}</text>'
