"""The tokenizer of GLM-4: byte-level BPE by ranks.

Each line of `tokenizer.model` is a token in base64 and its rank, which is its id. The files for
transformers have the same ranks as the vocabulary of `tokenizer.json`. A word is split into bytes,
and the neighbours whose union has the lowest rank are joined until none is left.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence
from functools import lru_cache
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from openglm.errors import TokenizerError, refuse_pointer
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.bpe import byte_characters
from openglm.tokenizers.special import layout

MODEL_FILE, JSON_FILE = "tokenizer.model", "tokenizer.json"
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How the official tokenizer cuts a text into words (that of OpenAI's cl100k_base)."""
CACHED_WORDS, SHORT = 1 << 16, 32
"""Words of up to so many bytes are joined once; longer ones seldom come again."""


class GLM4Tokenizer(Tokenizer):
    """Reads `tokenizer.model` or `tokenizer.json`.

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
        self.ranks = (read_json if path.suffix == ".json" else read_ranks)(path)
        self.num_text_tokens = len(self.ranks)
        self.special = layout(self.kind).resolve(self.num_text_tokens)
        self.bytes_of = list(self.ranks)
        self.splitter = Split(Regex(PATTERN), behavior="isolated")
        self.join_short = lru_cache(CACHED_WORDS)(self._join)

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        words = self.splitter.pre_tokenize_str(text)
        ids: list[int] = []
        for word, _ in words:
            written = word.encode()
            ids += (self.join_short if len(written) <= SHORT else self._join)(written)
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`."""
        return b"".join(self.bytes_of[i] for i in ids)

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        texts = [spelled.decode("utf-8", errors="replace") for spelled in self.bytes_of]
        return texts + [""] * (self.vocab_size - self.num_text_tokens)

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return self.bytes_of + [b""] * (self.vocab_size - self.num_text_tokens)

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {JSON_FILE if self.path.suffix == ".json" else MODEL_FILE: self.path}

    def _join(self, word: bytes) -> tuple[int, ...]:
        """Ids of one word, in time n log n: text without spaces can be one long word."""
        if word in self.ranks:
            return (self.ranks[word],)
        parts = [word[i : i + 1] for i in range(len(word))]
        following = [*range(1, len(parts)), -1]  # index of the next part that is still there
        before = list(range(-1, len(parts) - 1))
        queue: list[tuple[int, int, bytes]] = []

        def offer(place: int) -> None:
            if place >= 0 and following[place] >= 0:
                union = parts[place] + parts[following[place]]
                if union in self.ranks:
                    heappush(queue, (self.ranks[union], place, union))

        for place in range(len(parts)):
            offer(place)
        while queue:
            _, place, union = heappop(queue)
            other = following[place]
            if other < 0 or parts[place] + parts[other] != union or not parts[place]:
                continue  # one of the two has changed since
            parts[place], parts[other] = union, b""
            following[place] = following[other]
            following[other] = -1
            if following[place] >= 0:
                before[following[place]] = place
            offer(place)
            offer(before[place])
        return tuple(self.ranks[part] for part in parts if part)


def is_rank_file(path: Path) -> bool:
    """Whether a `tokenizer.model` is in this format: its first line is base64, space, number."""
    with path.open("rb") as file:
        fields = file.readline(256).split()
    return len(fields) == 2 and fields[1].isdigit()


def read_ranks(path: Path) -> dict[bytes, int]:
    """Token -> rank, in the order of ranks 0, 1, 2, ...; every byte must be a token."""
    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    refuse_pointer(path, TokenizerError)
    content = path.read_bytes()
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
        if int(rank) != number or len(ranks) != number + 1:
            raise TokenizerError(
                f"{path}, line {number + 1}: rank {int(rank)}, not {number}, or a token twice",
                hint="download it again",
            )
    _check_bytes(path, ranks)
    return ranks


def is_json_file(path: Path) -> bool:
    """Whether a `tokenizer.json` is GLM-4's: it adds the tokens of its roles and blanks."""
    added = _added(_read_json(path))
    return {"[gMASK]", "<sop>", "<|observation|>"} <= added


def read_json(path: Path) -> dict[bytes, int]:
    """Token -> rank of a `tokenizer.json`, whose ids are the ranks."""
    content = _read_json(path)
    added = _added(content)
    byte_of = {character: byte for byte, character in byte_characters().items()}
    try:
        vocabulary = content["model"]["vocab"]
        ranked = sorted((int(rank), token) for token, rank in vocabulary.items())
        words = [token for _, token in ranked if token not in added]
        ranks = {bytes(byte_of[c] for c in word): rank for rank, word in enumerate(words)}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise TokenizerError(
            f"{path} is no byte-level vocabulary: {error}", hint="download it again"
        ) from error
    if [rank for rank, _ in ranked[: len(words)]] != list(range(len(words))):
        raise TokenizerError(f"{path}: the ids of the vocabulary have gaps")
    _check_bytes(path, ranks)
    return ranks


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}", hint="download it again") from error
    if not isinstance(content, dict) or not isinstance(content.get("added_tokens", []), list):
        raise TokenizerError(f"{path} is no tokenizer of the tokenizers library")
    return content


def _added(content: dict[str, Any]) -> set[str]:
    """Texts of the tokens that stand beside the vocabulary."""
    tokens = content.get("added_tokens", [])
    return {str(token.get("content")) for token in tokens if isinstance(token, dict)}


def _check_bytes(path: Path, ranks: dict[bytes, int]) -> None:
    if any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(f"{path} lacks some of the 256 single bytes", hint="download it again")
