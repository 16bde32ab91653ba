"""Sources of training text: files of plain text or JSON lines, turned into documents.

*.txt            documents separated by blank lines
*.jsonl          one JSON object per line; `templates` say how its fields become text
*.xz, *.gz       either of them, compressed
"""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from openglm.errors import DataError, suggest

_FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One source of documents.

    Args:
        name: shown in logs and tables.
        path: the file; relative paths are relative to the run configuration's data folder.
        weight: how often its text is seen, relative to the other sources.
        templates: one document is made per template and row; `{field}` is replaced.
    """

    name: str
    path: str
    weight: float = 1.0
    templates: list[str] = field(default_factory=lambda: ["{text}"])

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise DataError(
                f"source {self.name!r} has weight={self.weight}; it must be positive and finite"
            )
        if not self.templates:
            raise DataError(f"source {self.name!r} has no templates")


@dataclass(frozen=True, slots=True)
class Row:
    """One entry of a source: its documents, and whether it is held out from training."""

    documents: list[str]
    held_out: bool


def read_rows(config: SourceConfig, folder: Path, holdout: float) -> Iterator[Row]:
    """Yields the rows of a source.

    A row is held out by a hash of its content, so that the split does not depend on order, and
    all documents made from one row fall on the same side.

    Raises:
        DataError: file missing, undecodable, not JSON, or without a field a template names.
    """
    path = folder / config.path
    if not path.is_file():
        raise DataError(
            f"source {config.name!r}: there is no file {path}", hint="check data.folder and path"
        )
    for number, (_, fields) in enumerate(read_fields(path), start=1):
        documents = [
            _fill(template, fields, f"{path}, entry {number}") for template in config.templates
        ]
        digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).digest()
        held_out = int.from_bytes(digest[:4], "big") < holdout * 2**32
        yield Row([text for text in documents if text.strip()], held_out)


def read_fields(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number, from 1, and fields of each JSON line; of a plain text each paragraph as `text`.

    Raises:
        DataError: undecodable, or a line that is no JSON object.
    """
    suffixes = [suffix for suffix in path.suffixes if suffix not in (".xz", ".gz")]
    is_json = bool(suffixes) and suffixes[-1] in (".jsonl", ".json")
    try:
        with _open(path) as file:
            if is_json:
                yield from _json_lines(path, file)
            else:
                yield from enumerate(({"text": text} for text in _paragraphs(file)), start=1)
    except (UnicodeDecodeError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="is it complete UTF-8?") from error


def _open(path: Path) -> IO[str]:
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise DataError(f"{path}, line {number} is not a JSON object")
        yield number, fields


def _paragraphs(file: IO[str]) -> Iterator[str]:
    lines: list[str] = []
    for line in file:
        if line.strip():
            lines.append(line.rstrip("\n"))
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


def _fill(template: str, fields: dict[str, Any], where: str) -> str:
    def field_text(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in fields:
            raise DataError(f"{where} has no field {name!r}", hint=suggest(name, fields))
        value = fields[name]
        if not isinstance(value, str | int | float):
            raise DataError(f"{where} has {value!r} in field {name!r}, which is not text")
        return str(value)

    text = _FIELD.sub(field_text, template)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where} has a lone surrogate, which is no Unicode text") from error
    return text
