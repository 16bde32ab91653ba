"""Batches: reproducible from seed and number alone, padded, and never drawn without end."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers_data import CLS, ENDS, EOS, SPECIAL, packed, store
from openglm.data.batches import Batch, BatchStream
from openglm.data.objectives import BlankInfilling, ObjectiveConfig
from openglm.data.packing import Packer
from openglm.errors import DataError


def objective(only: str) -> BlankInfilling:
    """An objective that makes one kind of blank, without dBLOCK and short sequences."""
    shares = {name: float(name == only) for name in ("token", "sentence", "document")}
    config = ObjectiveConfig(**shares, hidden_input=0.0, short_sequence=0.0)
    return BlankInfilling(config, SPECIAL, ENDS, 256)


@pytest.fixture
def packer(tmp_path: Path) -> Packer:
    """Thirty documents of 5 to 200 tokens."""
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 100, size).tolist() for size in rng.integers(5, 200, 30)]
    return Packer.build([store(tmp_path / "s", documents)], [1.0], 64, CLS, EOS, ENDS)


def same(first: Batch, second: Batch) -> bool:
    """Whether two batches are equal in every array."""
    arrays = ("input_ids", "targets", "loss_mask", "position_ids", "block_position_ids")
    return all(np.array_equal(getattr(first, n), getattr(second, n)) for n in arrays)


def test_a_batch_depends_on_seed_stream_and_number_alone(packer: Packer) -> None:
    """A resumed run would differ from a straight one, or all steps would see one batch."""
    config = ObjectiveConfig()
    made = BlankInfilling(config, SPECIAL, ENDS, 256)
    first = BatchStream(packer, made, batch_size=3, seed=7)
    again = BatchStream(packer, BlankInfilling(config, SPECIAL, ENDS, 256), batch_size=3, seed=7)
    for index in (0, 1, 5):
        first(index + 1)  # asking for others first changes nothing
        assert same(first(index), again(index))
    assert not same(first(0), first(1))
    assert not same(first(0), BatchStream(packer, made, batch_size=3, seed=8)(0))
    assert not same(first(0), BatchStream(packer, made, batch_size=3, seed=7, stream=1)(0))


def test_padding_is_zero_and_lies_behind_everything(packer: Packer) -> None:
    """Padding would be trained on, or be visible to the tokens."""
    stream = BatchStream(packer, objective("token"), batch_size=6, seed=0)
    for index in range(5):
        batch = stream(index)
        lengths = [int(max(np.flatnonzero(row), default=-1)) + 1 for row in batch.loss_mask]
        assert batch.context_lengths.astype(bool).tolist() == [length > 0 for length in lengths]
        assert max(lengths) <= batch.input_ids.shape[1] < max(lengths) + 32
        for row, length in enumerate(lengths):
            assert length == 0 or batch.targets[row, length - 1] == SPECIAL.eop_id
            for name in ("input_ids", "targets", "position_ids", "block_position_ids"):
                assert not getattr(batch, name)[row, length:].any()


class Repeated:
    """A packer that always draws the same texts, and counts."""

    def __init__(self, texts: list[np.ndarray], limit: int) -> None:
        self.texts, self.limit, self.draws = texts, limit, 0

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        self.draws += 1
        assert self.draws <= self.limit, "drawing without end"
        return self.texts[(self.draws - 1) % len(self.texts)]


def test_a_batch_that_lost_all_its_sequences_is_drawn_again() -> None:
    """Training would stop at a batch in which no sequence has a complete sentence."""
    packer = Repeated([packed([1, 2, 3]), packed([1, 2, 3]), packed([1, 2, 10])], 3)
    stream = BatchStream(packer, objective("sentence"), batch_size=1, seed=0)  # type: ignore[arg-type]
    targets = stream(0).targets
    assert targets[0, :7].tolist() == [CLS, SPECIAL.smask_id, EOS, 1, 2, 10, SPECIAL.eop_id]
    assert not targets[0, 7:].any()
    assert not targets[1:].any()
    assert packer.draws == 3


def test_text_that_never_gives_a_blank_ends_the_run() -> None:
    """Training on text without a sentence end would hang for ever at its first step."""
    packer = Repeated([packed([1, 2, 3])], 20_000)
    stream = BatchStream(packer, objective("sentence"), batch_size=2, seed=0)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="blank"):
        stream(0)
