"""The tokenizer of ChatGLM-6B and GLM-130B: sentencepiece with tokens for runs of white space.

Both read `ice_text.model`. The file of ChatGLM-6B has everything in it; the older one, of GLM-130B
and the first ChatGLM-6B, lacks the command, white-space and byte pieces, which are appended in
memory, and its ids start behind 20,000 ids of image tokens.

Lossy by design, as officially: compatibility characters are normalised (NFKC), one space at either
end is lost, and `<n>`, `<|tab|>` or `<|blank_2|>` written in a text become white space.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.sentencepiece_model import read_model, spelled
from openglm.tokenizers.special import layout

MODEL_FILE = "ice_text.model"
NUM_BASE_PIECES = 130000
NUM_IMAGE_TOKENS = 20000
NEWLINE, TAB = "<n>", "<|tab|>"
MAX_BLANK = 80
"""Longest run of spaces with a token of its own; the shortest is 2."""
CONTROLS = ("[MASK]", "[gMASK]", "[sMASK]", "<unused_0>", "<sop>", "<eop>", "<ENC>", "<dBLOCK>")
CONTROL, USER_DEFINED, BYTE = 3, 4, 6
"""Piece types in sentencepiece_model.proto."""
BYTE_FALLBACK = bytes([2 << 3 | 2, 3, *b"\x98\x02\x01"])
"""trainer_spec (field 2) with byte_fallback (field 35) = true; merged with the one in the file."""


class ChatGLMTokenizer(Tokenizer):
    """Reads `ice_text.model`.

    Args:
        path: the file.
        kind: "chatglm" (ids from 0); "chatglm-icetk" (the first ChatGLM-6B) and "icetk" (GLM-130B),
            which have ids from 20,000 and differ in how their models are asked.

    Raises:
        TokenizerError: missing, damaged, or of another model.
    """

    drops_blank_text = False

    def __init__(self, path: Path, kind: str = "chatglm") -> None:
        self.kind = kind
        self.path = path
        self.offset = 0 if kind == "chatglm" else NUM_IMAGE_TOKENS
        self.model = read_model(path, append=b"")
        if self.model.vocab_size() == NUM_BASE_PIECES:
            self.model = read_model(path, append=b"".join(_missing_pieces()) + BYTE_FALLBACK)
        first = NUM_BASE_PIECES
        if self.model.vocab_size() <= first or self.model.id_to_piece(first) != CONTROLS[0]:
            raise TokenizerError(
                f"{path} has {self.model.vocab_size()} pieces and is no tokenizer of ChatGLM-6B "
                "or GLM-130B",
                hint=f"their file {MODEL_FILE} has {NUM_BASE_PIECES} pieces before [MASK]",
            )
        self.num_text_tokens = self.offset + int(self.model.vocab_size())
        self.special = layout(kind).resolve(self.num_text_tokens)
        self.blanks = [(" " * n, f"<|blank_{n}|>") for n in range(MAX_BLANK, 1, -1)]
        self.white_space = (NEWLINE, TAB, *(token for _, token in self.blanks))

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        return [i + self.offset for i in self.model.encode(self._write_blanks(text))]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`; image tokens have no text."""
        known = [i - self.offset for i in ids if i >= self.offset]
        text: str = self.model.decode(known) if known else ""
        return self._read_blanks(text).encode()

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        spelled = [
            self._read_blanks(self.model.id_to_piece(i).replace("\u2581", " "))
            for i in range(self.model.vocab_size())
        ]
        texts = [""] * self.offset + spelled
        return ["" if i in self.special.ids else text for i, text in enumerate(texts)]

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        out = [piece.encode() for piece in self.pieces()]
        for i in range(self.model.vocab_size()):
            if self.model.is_byte(i) or self.model.is_unknown(i):
                out[i + self.offset] = spelled(self.model, i)
        return out

    def settled(self, text: str) -> int:
        """See `Tokenizer.settled`; white space may be spelled in several tokens, as in `<` `n>`."""
        certain = super().settled(text)
        place = text.rfind("<", 0, certain)
        if place < 0 or not any(one.startswith(text[place:certain]) for one in self.white_space):
            return certain
        return place

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {MODEL_FILE: self.path}

    def _write_blanks(self, text: str) -> str:
        text = text.replace("\n", NEWLINE).replace("\t", TAB)
        if "  " in text:
            for spaces, token in self.blanks:
                text = text.replace(spaces, token)
        return text

    def _read_blanks(self, text: str) -> str:
        text = text.replace(NEWLINE, "\n").replace(TAB, "\t")
        if "<|blank_" in text:
            for spaces, token in self.blanks:
                text = text.replace(token, spaces)
        return text


def _missing_pieces() -> Iterator[bytes]:
    """The pieces that the older file lacks, in the order of the newer one."""
    for text in CONTROLS:
        yield _piece(text, CONTROL)
    for text in (TAB, *(f"<|blank_{n}|>" for n in range(2, MAX_BLANK + 1))):
        yield _piece(text, USER_DEFINED)
    for byte in range(256):
        yield _piece(f"<0x{byte:02X}>", BYTE)


def _piece(text: str, kind: int) -> bytes:
    """One serialised `pieces` entry: text (field 1), score 0 (field 2), type (field 3)."""
    written = text.encode()
    body = bytes([1 << 3 | 2, len(written)]) + written
    body += bytes([2 << 3 | 5]) + struct.pack("<f", 0.0) + bytes([3 << 3, kind])
    return bytes([1 << 3 | 2, len(body)]) + body


def is_older_file(path: Path) -> bool:
    """Whether a file lacks the command pieces, as those of GLM-130B and the first ChatGLM-6B."""
    return bool(read_model(path).vocab_size() == NUM_BASE_PIECES)
