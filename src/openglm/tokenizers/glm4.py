"""The tokenizer of GLM-4: byte-level BPE by ranks (tiktoken's format), or a `tokenizer.json`.

Each line of `tokenizer.model` is a token in base64 and its rank, which is its id. A word is split
into bytes, and the neighbours whose union has the lowest rank are joined until none is left.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

from openglm.errors import LFS_HINT, LFS_MARK, TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.special import layout

MODEL_FILE = "tokenizer.model"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the official tokenizer cuts a text into words (that of OpenAI's cl100k_base)."""
CACHED_WORDS = 1 << 16


class GLM4Tokenizer(Tokenizer):
    """Reads `tokenizer.model`.

    Args:
        path: the file.

    Raises:
        TokenizerError: missing, damaged, or not a table of tokens and ranks.
    """

    kind = "glm4"
    drops_blank_text = False

    def __init__(self, path: Path) -> None:
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import Split

        self.path = path
        self.ranks = read_ranks(path)
        self.num_text_tokens = len(self.ranks)
        self.special = layout(self.kind).resolve(self.num_text_tokens)
        self.bytes_of = list(self.ranks)
        self.splitter = Split(Regex(PATTERN), behavior="isolated")
        self.join = lru_cache(CACHED_WORDS)(self._join)

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        words = self.splitter.pre_tokenize_str(text)
        return [token for word, _ in words for token in self.join(word.encode())]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        return b"".join(self.bytes_of[i] for i in ids)

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        texts = [spelled.decode("utf-8", errors="replace") for spelled in self.bytes_of]
        return texts + [""] * (self.vocab_size - self.num_text_tokens)

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {MODEL_FILE: self.path}

    def _join(self, word: bytes) -> tuple[int, ...]:
        """Ids of one word."""
        if word in self.ranks:
            return (self.ranks[word],)
        parts = [word[i : i + 1] for i in range(len(word))]
        while len(parts) > 1:
            unions = [left + right for left, right in pairwise(parts)]
            ranked = [self.ranks.get(union, self.num_text_tokens) for union in unions]
            lowest = min(ranked)
            if lowest == self.num_text_tokens:
                break
            place = ranked.index(lowest)
            parts[place : place + 2] = [unions[place]]
        return tuple(self.ranks[part] for part in parts)


def is_rank_file(path: Path) -> bool:
    """Whether a `tokenizer.model` is in this format: its first line is base64, space, number."""
    with path.open("rb") as file:
        fields = file.readline(256).split()
    return len(fields) == 2 and fields[1].isdigit()


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, in the order of ranks 0, 1, 2, ...; every byte must be a token."""
    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    content = path.read_bytes()
    if content.startswith(LFS_MARK):
        raise TokenizerError(
            f"{path} is a Git LFS pointer of {len(content)} bytes, not the file itself",
            hint=LFS_HINT,
        )
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines()):
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{path}, line {number + 1}: not a token in base64 and its rank",
                hint="download it again",
            ) from error
        if int(rank) != number:
            raise TokenizerError(f"{path}, line {number + 1}: rank {int(rank)}, not {number}")
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(
            f"{path} ({len(content)} bytes) lacks some of the 256 single bytes",
            hint="download it again",
        )
    return ranks
