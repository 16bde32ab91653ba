"""The tokenizer of models trained by this project: sentencepiece BPE with byte fallback, lossless.

Every string of Unicode scalar values survives `decode(encode(text))`. Sentencepiece alone cannot
promise that, since it writes a space as U+2581: that character itself, and the few that it treats
as its own, are encoded as bytes here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from openglm.errors import TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.special import layout

SPACE_MARK = "\u2581"
MODEL_FILE = "tokenizer.model"
NEWLINE = "\n"
PROBE = "a  b\n 中 "
"""Does not survive a tokenizer that adds or merges spaces, as those of ChatGLM do."""
_AS_BYTES = re.compile("[\u2581\u0000]+")


class MiniTokenizer(Tokenizer):
    """Reads a sentencepiece model trained by `train`.

    Args:
        path: the `.model` file.

    Raises:
        TokenizerError: missing, damaged, or not trained with byte fallback.
    """

    kind = "mini"
    drops_blank_text = False
    stripped = " "
    """Pieces of English carry the space in front of them, so a blank does too; lines stay lines."""

    def __init__(self, path: Path) -> None:
        from openglm.tokenizers.sentencepiece_model import read_model

        self.path = path
        self.model = read_model(path)
        self.num_text_tokens = int(self.model.vocab_size())
        self.special = layout(self.kind).resolve(self.num_text_tokens)
        self.byte_ids = [int(self.model.piece_to_id(f"<0x{b:02X}>")) for b in range(256)]
        if not all(self.model.is_byte(i) for i in self.byte_ids):
            raise TokenizerError(f"{path} has no byte fallback, so it cannot be lossless")
        self.bytes_of = dict(self._spell())
        if self.decode(self.encode(PROBE)) != PROBE:
            raise TokenizerError(f"{path} is not lossless, so it is no tokenizer of this project")

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        ids: list[int] = []
        done = 0
        for match in _AS_BYTES.finditer(text):
            ids.extend(self.model.encode(text[done : match.start()]))
            ids.extend(self.byte_ids[byte] for byte in match.group().encode())
            done = match.end()
        ids.extend(self.model.encode(text[done:]))
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        return b"".join(self.bytes_of[i] for i in ids)

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        spelled = [
            self.bytes_of[i].decode("utf-8", errors="replace") for i in range(self.num_text_tokens)
        ]
        return spelled + [""] * (self.vocab_size - self.num_text_tokens)

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return [self.bytes_of.get(i, b"") for i in range(self.vocab_size)]

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {MODEL_FILE: self.path}

    def _spell(self) -> Iterator[tuple[int, bytes]]:
        byte_of = {token_id: byte for byte, token_id in enumerate(self.byte_ids)}
        for token_id in range(self.num_text_tokens):
            if token_id in byte_of:
                yield token_id, bytes([byte_of[token_id]])
            elif self.model.is_control(token_id) or self.model.is_unknown(token_id):
                yield token_id, b""
            else:
                piece = self.model.id_to_piece(token_id)
                yield token_id, piece.replace(SPACE_MARK, " ").encode()


def train(documents: Iterator[str], path: Path, vocab_size: int, **options: Any) -> MiniTokenizer:
    """Trains a lossless tokenizer and writes `path`.

    Args:
        documents: the text; pieces never cross a line break.
        path: where the `.model` file goes.
        vocab_size: model rows in all, command tokens included.
        **options: passed on to the sentencepiece trainer.
    """
    import sentencepiece

    num_commands = len(layout("mini").resolve(0).ids)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in documents for line in text.split(NEWLINE) if line),
        model_prefix=str(path.with_suffix("")),
        vocab_size=vocab_size - num_commands,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        user_defined_symbols=[NEWLINE],
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        max_sentence_length=1 << 16,  # in bytes; longer lines would be left out
        minloglevel=1,
        **options,
    )
    path.with_suffix(".vocab").unlink(missing_ok=True)
    return MiniTokenizer(path)
