"""Batches as a pure function of (seed, step): nothing to save, nothing to lose on a restart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openglm.data.blank_infilling import Example
from openglm.data.objectives import BlankInfilling
from openglm.data.packing import Packer
from openglm.errors import DataError


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right; arrays are (B, T) int64, `context_lengths` is (B,) int64.

    Padding has token, target, loss mask and positions 0 (the official collation): it comes after
    everything else, so causal attention never sees it. Rows may be all padding.
    """

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    loss_mask: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    block_position_ids: NDArray[np.int64]
    context_lengths: NDArray[np.int64]

    @property
    def num_tokens(self) -> int:
        """Tokens the network processes, padding included."""
        return int(self.input_ids.size)

    @property
    def num_targets(self) -> int:
        """Tokens with a loss."""
        return int(self.loss_mask.sum())


ROWS = ("input_ids", "targets", "loss_mask", "position_ids", "block_position_ids")


ROW_MULTIPLE, LENGTH_MULTIPLE = 8, 32
"""Shapes are rounded up to these, so that few different ones occur.

Matrix kernels are compiled and cached per shape; with a new shape in every step a training run
compiles all the time, and the cache's churn fragments its memory (dev/LOG.md has the figures).
"""


def collate(examples: list[Example], batch_size: int = ROW_MULTIPLE) -> Batch:
    """Stacks examples of different lengths into few different shapes.

    Args:
        examples: of one batch; some may have been dropped, or more made by re-cutting.
        batch_size: what was asked for; a small one is not rounded up.
    """
    rows = _round_up(len(examples), min(ROW_MULTIPLE, batch_size))
    longest = _round_up(max(len(example.input_ids) for example in examples), LENGTH_MULTIPLE)
    arrays = {name: np.zeros((rows, longest), dtype=np.int64) for name in ROWS}
    context_lengths = np.zeros(rows, dtype=np.int64)
    for row, example in enumerate(examples):
        context_lengths[row] = example.context_length
        for name in ROWS:
            values = getattr(example, name)
            arrays[name][row, : len(values)] = values
    return Batch(**arrays, context_lengths=context_lengths)


MOST_TRIES = 1000
"""Batches without any blank before the text is declared unusable."""


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


@dataclass(frozen=True, slots=True)
class BatchStream:
    """The training or validation batches of a run.

    Args:
        packer: draws packed sequences.
        objective: makes blanks.
        batch_size: packed sequences per batch.
        seed: of the run; different streams of a run use different `stream` numbers.
        stream: 0 = training, 1 = validation.
    """

    packer: Packer
    objective: BlankInfilling
    batch_size: int
    seed: int
    stream: int = 0

    def __call__(self, index: int) -> Batch:
        """Batch number `index`, always the same for the same seed and data."""
        rng = np.random.default_rng([self.seed, self.stream, index])
        for _ in range(MOST_TRIES):
            sequences = [self.packer.draw(rng) for _ in range(self.batch_size)]
            examples = self.objective.batch(sequences, rng)
            if examples:
                return collate(examples, self.batch_size)
        raise DataError(
            f"{MOST_TRIES} batches in a row had no place for a blank",
            hint="the documents are too short or have no sentence ends for [objective]",
        )
