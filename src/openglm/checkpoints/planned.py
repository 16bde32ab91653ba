"""Weight files that are laid out first and filled tensor by tensor.

Neither safetensors nor torch can write a file whose tensors are not all in memory at once; a rank
of GLM-130B has 32 GB. Both formats have a table of contents and then plain bytes, so the table is
written beforehand, for tensors without data, and the bytes follow in any order.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from openglm.checkpoints.files import SAFETENSORS_DTYPES
from openglm.errors import CheckpointError

Specs = Mapping[str, Tensor]
"""Name -> tensor on the meta device: dtype and shape of what will be written."""
LINE_BYTES = 64
"""A cache line, and the widest vector register."""
ZIP_NAMES_AT, ZIP_HEADER = 26, 30
"""In a zip entry's header: where the lengths of name and extra field stand, and its size without
them (APPNOTE 4.3.7)."""


@dataclass(frozen=True, slots=True)
class _Place:
    offset: int
    dtype: torch.dtype
    shape: torch.Size


class PlannedFile:
    """A file with a place for every tensor; use as a context manager.

    Args:
        path: exists, with its table of contents.
        places: where each tensor goes.
    """

    def __init__(self, path: Path, places: dict[str, _Place]) -> None:
        self.places = places
        self.empty = set(places)
        self.file = path.open("r+b")

    def put(self, name: str, tensor: Tensor) -> None:
        """Writes one tensor, in the dtype of its place."""
        place = self.places[name]
        assert tensor.shape == place.shape, f"{name}: {tensor.shape} is not {place.shape}"
        data = tensor.detach().to("cpu", place.dtype).contiguous()
        self.file.seek(place.offset)
        self.file.write(data.reshape(-1).view(torch.uint8).numpy().data)
        self.empty.discard(name)

    def __enter__(self) -> PlannedFile:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self.file.close()
        assert kind is not None or not self.empty, f"never written: {sorted(self.empty)[:8]}"


def plan_safetensors(path: Path, specs: Specs) -> PlannedFile:
    """Lays out a safetensors file: header length, header as JSON, tensors one behind the other."""
    names_of = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    # So all are aligned: whole cache lines, which kernels read in place, then the widest first.
    for name, spec in sorted(specs.items(), key=lambda item: _alignment(item[1])):
        offsets[name], end = end, end + spec.nbytes
        header[name] = {
            "dtype": names_of[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [offsets[name], end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % LINE_BYTES)
    start = 8 + len(text)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(start + end)
    places = {n: _Place(start + offsets[n], spec.dtype, spec.shape) for n, spec in specs.items()}
    return PlannedFile(path, places)


def _alignment(spec: Tensor) -> tuple[bool, int]:
    return spec.nbytes % LINE_BYTES > 0, -spec.itemsize


def plan_torch(
    path: Path, specs: Specs, content: Callable[[dict[str, Tensor]], dict[str, Any]]
) -> PlannedFile:
    """Lays out a file of `torch.save`.

    The checksums in it stay zero; torch reads none.

    Args:
        path: of the file.
        specs: its tensors.
        content: tensors by name -> the dictionary to save, which holds each of them once.
    """
    with FakeTensorMode():
        fakes = {n: torch.empty(spec.shape, dtype=spec.dtype) for n, spec in specs.items()}
    saved = content(fakes)
    try:
        with torch.serialization.skip_data(materialize_fake_tensors=True):
            torch.save(saved, path)
    except RuntimeError as error:  # of torch's zip writer, for a full disk too
        raise CheckpointError(
            f"{path} cannot be written: {str(error).splitlines()[0]}",
            hint="is the disk full, or a limit of open files or file sizes reached?",
        ) from error
    name_of = {id(fake): name for name, fake in fakes.items()}
    order = [name_of[id(tensor)] for tensor in _tensors(saved)]  # torch numbers them as it goes
    with zipfile.ZipFile(path) as archive:
        records = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    places = {}
    with path.open("rb") as file:
        for number, name in enumerate(order):
            info, spec = records[f"data/{number}"], specs[name]
            assert info.file_size == spec.nbytes, f"{name} is not record {number} of {path}"
            file.seek(info.header_offset + ZIP_NAMES_AT)
            lengths = struct.unpack("<HH", file.read(4))
            offset = info.header_offset + ZIP_HEADER + sum(lengths)
            places[name] = _Place(offset, spec.dtype, spec.shape)
    return PlannedFile(path, places)


def _tensors(content: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in content.values():
        if isinstance(value, Mapping):
            yield from _tensors(value)
        elif isinstance(value, Tensor):
            yield value
