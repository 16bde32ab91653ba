"""Opening a sentencepiece file with errors a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openglm.errors import TokenizerError, refuse_pointer

TRAINER_SPEC, NORMALIZER_SPEC = 2, 3
"""Field numbers in sentencepiece_model.proto; the pieces, field 1, come first in the file."""
LENGTH_DELIMITED = 2
SPACE_MARK = "\u2581"


def read_model(path: Path, append: bytes = b"") -> Any:
    """The `SentencePieceProcessor` of `path`; `TokenizerError` if missing or damaged.

    Args:
        path: the `.model` file.
        append: serialised fields that are read as if they stood at its end.
    """
    import sentencepiece

    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    refuse_pointer(path, TokenizerError)
    content = path.read_bytes()
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content + append)
        complete = {TRAINER_SPEC, NORMALIZER_SPEC} <= _fields(content)
    except (RuntimeError, IndexError):
        complete = False
    if not complete:
        raise TokenizerError(
            f"{path} ({len(content)} bytes) is not a complete sentencepiece model",
            hint="download it again",
        )
    return model


def spelled(model: Any, token_id: int) -> bytes:
    """What an id of a sentencepiece model adds to a text."""
    piece: str = model.id_to_piece(token_id)
    if model.is_byte(token_id):
        return bytes([int(piece[3:5], 16)])
    if model.is_control(token_id):
        return b""
    if model.is_unknown(token_id):
        return " \u2047 ".encode()  # what sentencepiece writes
    return piece.replace(SPACE_MARK, " ").encode()


def _fields(content: bytes) -> set[int]:
    """Numbers of the top-level fields of a protocol buffer.

    A file that was cut between two pieces still parses; but the fields behind them are missing.
    """
    found, place = set(), 0
    while place < len(content):
        key, place = _varint(content, place)
        size, place = _varint(content, place)
        if key & 7 != LENGTH_DELIMITED:
            return set()
        found.add(key >> 3)
        place += size
    return found


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """The base-128 number at `place`, and the place behind it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
