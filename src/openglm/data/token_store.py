"""Token stores: the documents of one source as one memory-mapped array of ids.

A store is a folder with `ids.npy` (all documents end to end) and `offsets.npy` (n + 1 starts).
It is written once, next to a name that is a hash of everything that went into it, and reused.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openglm.data.blank_infilling import Ids


class TokenStore:
    """Read access to the documents of one source."""

    def __init__(self, folder: Path) -> None:
        self.ids = np.load(folder / "ids.npy", mmap_mode="r")
        self.offsets: NDArray[np.int64] = np.load(folder / "offsets.npy")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Ids:
        """Document `index` as (N,) int64."""
        start, end = self.offsets[index], self.offsets[index + 1]
        tokens: Ids = self.ids[start:end].astype(np.int64)
        return tokens

    @property
    def lengths(self) -> NDArray[np.int64]:
        """(n,) tokens per document."""
        return np.diff(self.offsets)

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return int(self.offsets[-1])


def write_store(folder: Path, documents: Iterable[list[int]], vocab_size: int) -> TokenStore:
    """Writes a store atomically: a killed run leaves no half store behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    arrays = [np.array(ids, dtype=dtype) for ids in documents if ids]
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    building = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        joined = np.concatenate(arrays) if arrays else np.empty(0, dtype=dtype)
        np.save(building / "ids.npy", joined)
        np.save(building / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
        try:
            os.rename(building, folder)
        except OSError:  # another run wrote the same store first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return TokenStore(folder)
