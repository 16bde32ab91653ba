"""The tokenizer of ChatGLM2, ChatGLM3 and CodeGeeX2: sentencepiece BPE with byte fallback.

ChatGLM2 and ChatGLM3 ship the same `tokenizer.model`; ChatGLM3 adds tokens for roles. The file of
CodeGeeX2 differs from it in one byte: it puts no space in front of the text. Command tokens never
come out of a text. Lossless, but for U+2581, with which sentencepiece writes a space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.sentencepiece_model import SPACE_MARK, read_model, spelled
from openglm.tokenizers.special import layout

MODEL_FILE = "tokenizer.model"
NUM_PIECES = 64789
SHA256 = {
    "e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2": "chatglm2",
    "57d9fdbdfaa7cd8c0a3a38d7e8de2e6c31374b5dbc4dc4568d85585fe745812f": "codegeex2",
}
"""Of the official files; they have the same size, and only the hash tells them apart."""


class ChatGLM2Tokenizer(Tokenizer):
    """Reads `tokenizer.model`.

    Args:
        path: the file.
        kind: "chatglm2", "chatglm3" or "codegeex2".

    Raises:
        TokenizerError: missing, damaged, or the file of another model.
    """

    drops_blank_text = False

    def __init__(self, path: Path, kind: str) -> None:
        self.kind = kind
        self.path = path
        self.model = read_model(path)
        self._check()
        self.num_text_tokens = int(self.model.vocab_size())
        self.special = layout(kind).resolve(self.num_text_tokens)
        self.bytes_of = {i: spelled(self.model, i) for i in range(self.num_text_tokens)}

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        return list(self.model.encode(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`; a space in front, which encoding adds, is dropped."""
        spelled = b"".join(self.bytes_of[i] for i in ids)
        return spelled.removeprefix(b" ") if self.adds_space else spelled

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        texts = [self.bytes_of[i].decode("utf-8", "replace") for i in range(self.num_text_tokens)]
        return texts + [""] * (self.vocab_size - self.num_text_tokens)

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return [self.bytes_of.get(i, b"") for i in range(self.vocab_size)]

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {MODEL_FILE: self.path}

    def _check(self) -> None:
        self.adds_space = self.model.id_to_piece(self.model.encode("a")[0])[0] == SPACE_MARK
        if self.model.vocab_size() != NUM_PIECES:
            raise TokenizerError(
                f"{self.path} has {self.model.vocab_size()} pieces; the tokenizer of {self.kind} "
                f"has {NUM_PIECES}"
            )
        if self.adds_space != (self.kind != "codegeex2"):
            other = "ChatGLM2 or ChatGLM3" if self.adds_space else "CodeGeeX2"
            raise TokenizerError(
                f"{self.path} is the tokenizer of {other}, not of {self.kind}",
                hint="the two files differ in one byte; take the one from the model's own folder",
            )


def official_kind(path: Path) -> str | None:
    """The kind of an official file by its hash, None for any other file."""
    return SHA256.get(hashlib.sha256(path.read_bytes()).hexdigest())
