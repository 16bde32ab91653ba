"""Byte-level BPE of GPT-2 and RoBERTa, for GLM-2B, GLM-10B and GLM-RoBERTa."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.special import layout

VOCAB_FILE, MERGES_FILE = "vocab.json", "merges.txt"


class BytePairTokenizer(Tokenizer):
    """Reads `vocab.json` and `merges.txt`; no space is added in front of the text.

    Args:
        folder: where both files are.
        kind: "gpt2" or "roberta"; they differ in their command tokens.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        from tokenizers import Tokenizer as Pipeline
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel

        self.kind = kind
        self.paths = {name: folder / name for name in (VOCAB_FILE, MERGES_FILE)}
        for path in self.paths.values():
            if not path.is_file():
                raise TokenizerError(f"there is no tokenizer file {path}")
        vocabulary = read_vocabulary(self.paths[VOCAB_FILE])
        try:
            model = BPE.from_file(*(str(path) for path in self.paths.values()))
        except Exception as error:  # the tokenizers library raises bare Exception
            raise TokenizerError(f"{folder}: damaged BPE files: {error}") from error
        self.num_text_tokens = max(vocabulary.values()) + 1
        self.special = layout(kind).resolve(self.num_text_tokens)
        names = {token_id: name for name, token_id in vocabulary.items()}
        for token in self.special.tokens:
            # RoBERTa's end mark is </s> in the file and printed as GPT-2's.
            if names.get(token.id, token.text) not in (token.text, "</s>"):
                raise TokenizerError(
                    f"{self.paths[VOCAB_FILE]} is not a {kind} vocabulary: id {token.id} is "
                    f"{names[token.id]!r}, not {token.text!r}"
                )
        self.pipeline = Pipeline(model)
        self.pipeline.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=True)
        byte_of = {character: byte for byte, character in byte_characters().items()}
        command = self.special.ids
        self.bytes_of = {
            token_id: b""
            if token_id in command
            else bytes(byte_of[c] for c in token if c in byte_of)
            for token, token_id in vocabulary.items()
        }

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        return list(self.pipeline.encode(text, add_special_tokens=False).ids)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        return b"".join(self.bytes_of.get(i, b"") for i in ids)

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        return [
            self.bytes_of.get(i, b"").decode("utf-8", errors="replace")
            for i in range(self.vocab_size)
        ]

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return [self.bytes_of.get(i, b"") for i in range(self.vocab_size)]

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return self.paths


def read_vocabulary(path: Path) -> dict[str, int]:
    """Token -> id of a `vocab.json`; `TokenizerError` if it is damaged."""
    try:
        vocabulary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TokenizerError(
            f"{path.parent}: damaged BPE files: {path.name} is not JSON: {error}",
            hint="download it again",
        ) from error
    valid = isinstance(vocabulary, dict) and all(type(i) is int for i in vocabulary.values())
    if not valid or not vocabulary:
        raise TokenizerError(
            f"{path.parent}: damaged BPE files: {path.name} is no table of tokens and ids",
            hint="download it again",
        )
    return {str(token): int(token_id) for token, token_id in vocabulary.items()}


def byte_characters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: itself if printable in Latin-1, else 256 + n."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return {byte: chr(byte if byte in printable else next(others)) for byte in range(256)}
