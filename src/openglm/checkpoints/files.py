"""Opening one file of weights safely: safetensors, or a pickle with `weights_only=True`.

Damaged, unsafe and misplaced files each get their own error. Tensors are memory-mapped where the
format allows, so opening a file reads only its table of contents.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from openglm.errors import CheckpointError, refuse_pointer

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_GLOBAL = re.compile(r"(?:GLOBAL|Unsupported (?:class|function|operand)) ([\w.]+)")
_RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
NUMPY_STATE: list[Any] = [
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    np.ndarray,
    np.dtype,
    np.dtypes.UInt32DType,
]
"""What numpy's random state in official training checkpoints is made of: arrays, no code."""
ZIP = b"PK\x03\x04"
"""How files in torch's present format begin; they can be memory-mapped."""
MAX_DEPTH = 8
"""Of dictionaries in dictionaries; CodeGeeX has 4."""
SAFETENSORS_DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


class WeightFile(Protocol):
    """Named tensors of one file, read one at a time."""

    path: Path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, without reading the data."""

    def dtypes(self) -> dict[str, torch.dtype | str]:
        """Name -> dtype; a string for dtypes that weights cannot have."""

    def get(self, name: str) -> Tensor:
        """One tensor, on the CPU."""

    def reopen(self) -> None:
        """Gives back the memory of what was read, except of tensors that are still held."""


class SafetensorsFile:
    """A `.safetensors` file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reopen()
        self.names: list[str] = list(self.file.keys())

    def reopen(self) -> None:
        """See `WeightFile.reopen`."""
        try:
            self.file: Any = safe_open(self.path, framework="pt", device="cpu")
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{self.path} ({self.path.stat().st_size} bytes) is not a complete safetensors "
                f"file: {error}",
                hint="download it again",
            ) from error

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `WeightFile.shapes`."""
        return {n: tuple(self.file.get_slice(n).get_shape()) for n in self.names}

    def dtypes(self) -> dict[str, torch.dtype | str]:
        """See `WeightFile.dtypes`."""
        found = {name: self.file.get_slice(name).get_dtype() for name in self.names}
        return {name: SAFETENSORS_DTYPES.get(dtype, dtype) for name, dtype in found.items()}

    def get(self, name: str) -> Tensor:
        """See `WeightFile.get`."""
        tensor: Tensor = self.file.get_tensor(name)
        return tensor


class PickleFile:
    """A `.bin` or `.pt` file, read by torch's restricted unpickler.

    Args:
        path: the file.
        key: the entry that holds the tensors; None = the top level.
    """

    def __init__(self, path: Path, key: str | None = None) -> None:
        self.path, self.key = path, key
        with path.open("rb") as file:
            self.is_mapped = file.read(4) == ZIP  # older files are read whole
        self._open()

    def _open(self) -> None:
        path, key = self.path, self.key
        self.content = _load_pickle(path, self.is_mapped)
        tensors: Any = self.content if key is None else self.content.get(key)
        if not isinstance(tensors, Mapping):
            raise CheckpointError(
                f"{path} has no dictionary {key!r} of weights; it has "
                f"{', '.join(map(str, self.content))}"
            )
        flat = list(_flatten(tensors))
        tensors = dict(flat)
        if len(tensors) < len(flat):
            raise CheckpointError(f"{path} has several tensors of one name")
        strangers = [str(n) for n, value in tensors.items() if not isinstance(value, Tensor)]
        if strangers:
            raise CheckpointError(
                f"{path}: these entries are not tensors: {', '.join(strangers[:8])}"
            )
        self.tensors: Mapping[str, Tensor] = tensors

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """See `WeightFile.shapes`."""
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    def dtypes(self) -> dict[str, torch.dtype | str]:
        """See `WeightFile.dtypes`."""
        return {
            name: t.dtype if t.dtype in SAFETENSORS_DTYPES.values() else str(t.dtype)
            for name, t in self.tensors.items()
        }

    def get(self, name: str) -> Tensor:
        """See `WeightFile.get`."""
        return self.tensors[name]

    def reopen(self) -> None:
        """See `WeightFile.reopen`; a file that was read whole stays as it is."""
        if self.is_mapped:
            self._open()


def _flatten(
    nested: Mapping[Any, Any], prefix: str = "", depth: int = MAX_DEPTH
) -> Iterator[tuple[str, Any]]:
    """Entries of dictionaries in dictionaries, with their keys joined by dots (CodeGeeX)."""
    if depth == 0:
        raise CheckpointError(f"the dictionaries of weights are nested deeper than {MAX_DEPTH}")
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.", depth - 1)
        else:
            yield f"{prefix}{key}", value


def open_weights(path: Path, key: str | None = None) -> WeightFile:
    """Opens a file of weights by its name's ending.

    Args:
        path: `.safetensors`, `.bin` or `.pt`.
        key: for pickles, the entry that holds the tensors.

    Raises:
        CheckpointError: missing, empty, a Git LFS pointer, truncated, or a pickle that wants to
            run code.
    """
    if not path.is_file():
        raise CheckpointError(f"the weight file {path} is missing", hint="download it again")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path} is empty", hint="download it again")
    refuse_pointer(path, CheckpointError)
    return SafetensorsFile(path) if path.suffix == ".safetensors" else PickleFile(path, key)


def _load_pickle(path: Path, is_mapped: bool) -> dict[str, Any]:
    content: Any
    try:
        with torch.serialization.safe_globals(NUMPY_STATE):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_mapped)
    except pickle.UnpicklingError as error:
        wanted = _GLOBAL.search(str(error))
        reason = (
            f"it wants to run code ({wanted.group(1)}), which weights do not need"
            if wanted
            else "it is damaged, or no pickle"
        )
        raise CheckpointError(
            f"{path} was not loaded: {reason}",
            hint="get the checkpoint from its official source, as safetensors if there is one",
        ) from error
    except Exception as error:  # torch and zipfile raise nearly anything on damaged files
        raise CheckpointError(
            f"{path} ({path.stat().st_size} bytes) is not a complete torch file: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}",
            hint="download it again",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a dictionary")
    return content
