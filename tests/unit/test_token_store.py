"""Token stores: what is written is read back, and a store is there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from openglm.data.token_store import TokenStore, write_store


def test_documents_come_back_as_they_went_in(tmp_path: Path) -> None:
    """Training would read texts run together or cut at the wrong places."""
    documents = [[5, 6, 7], [8], [], [9, 9]]
    written = write_store(tmp_path / "deep" / "tales", documents, vocab_size=100)
    for found in (written, TokenStore(tmp_path / "deep" / "tales")):
        assert [document.tolist() for document in found] == [[5, 6, 7], [8], [9, 9]]
        assert found[0].dtype == np.int64
        assert found.lengths.tolist() == [3, 1, 2]
        assert (len(found), found.num_tokens) == (3, 6)


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(1 << 16, 2), ((1 << 16) + 1, 4)])
def test_the_largest_id_fits(vocab_size: int, itemsize: int, tmp_path: Path) -> None:
    """Ids of a large vocabulary would wrap around to other tokens."""
    found = write_store(tmp_path / "s", [[0, vocab_size - 1]], vocab_size)
    assert found[0].tolist() == [0, vocab_size - 1]
    assert found.ids.itemsize == itemsize


def test_an_id_outside_the_vocabulary_is_not_wrapped(tmp_path: Path) -> None:
    """A wrong tokenizer would fill the store with other tokens."""
    with pytest.raises(OverflowError):
        write_store(tmp_path / "s", [[1 << 16]], vocab_size=1 << 16)


def test_an_empty_store_can_be_written_and_read(tmp_path: Path) -> None:
    """A source without held-out text would stop the run."""
    found = write_store(tmp_path / "none", [[]], vocab_size=100)
    assert (len(found), found.num_tokens, list(found)) == (0, 0, [])


def test_a_store_is_mapped_not_loaded(tmp_path: Path) -> None:
    """A corpus larger than the memory could not be trained on."""
    assert isinstance(write_store(tmp_path / "s", [[1]], 100).ids, np.memmap)


def test_text_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """The next run would find half a corpus and train on it."""

    def broken() -> Iterator[list[int]]:
        yield [1, 2]
        raise OSError("the disk went away")

    with pytest.raises(OSError, match="went away"):
        write_store(tmp_path / "s", broken(), 100)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk would leave a store without offsets, or heaps of temporary folders."""
    save = np.save

    def failing(path: Path, array: np.ndarray) -> None:
        if path.name == "offsets.npy":
            assert not (tmp_path / "s").exists(), "half a store under its final name"
            raise OSError("no space left")
        save(path, array)

    monkeypatch.setattr(np, "save", failing)
    with pytest.raises(OSError, match="no space"):
        write_store(tmp_path / "s", [[1, 2]], 100)
    assert list(tmp_path.iterdir()) == []


def test_the_second_of_two_writers_takes_the_store_of_the_first(tmp_path: Path) -> None:
    """Of two runs started at once on one corpus, one would end in a bare OSError."""
    write_store(tmp_path / "s", [[1, 2], [3]], 100)
    again = write_store(tmp_path / "s", [[1, 2], [3]], 100)
    assert [document.tolist() for document in again] == [[1, 2], [3]]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
