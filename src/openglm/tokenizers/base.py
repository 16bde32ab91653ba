"""`Tokenizer`: text to ids and back, with command tokens kept apart from text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers.special import CommandToken, SpecialTokens

REPLACEMENT = "\ufffd"
"""What broken or incomplete bytes are decoded to."""


class Tokenizer(ABC):
    """Base of all tokenizers.

    Attributes:
        kind: key of `openglm.tokenizers.special.LAYOUTS`.
        special: the command tokens.
        num_text_tokens: size of the text vocabulary, without appended command tokens.
    """

    kind: str
    special: SpecialTokens
    num_text_tokens: int
    drops_blank_text = True
    """A text of white space alone gives no ids, as in the official code."""
    stripped: str | None = None
    """What an `lstrip` token swallows on its left; None = all white space, as officially."""
    special_prefix = ""
    """What stands in front of a command token that is written out."""

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.num_text_tokens, max(self.special.ids) + 1)

    @cached_property
    def command_texts(self) -> dict[int, str]:
        """Id -> text of the tokens that are no text."""
        return self.special.texts

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """Ids that can be part of a text."""
        return frozenset(range(self.num_text_tokens)) - self.special.ids

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text; whatever it contains, no command id comes out."""

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of text ids; a sequence cut inside a character gives part of its bytes."""

    @abstractmethod
    def pieces(self) -> list[str]:
        """(V,) the text of every id as it contributes to a decoded text, "" for command tokens."""

    def spellings(self) -> list[bytes]:
        """(V,) the bytes that every id adds to a text, b"" for command tokens.

        What decoding does to a text as a whole, as dropping the space in front, is not in it.
        """
        return [piece.encode() for piece in self.pieces()]

    @abstractmethod
    def files(self) -> dict[str, Path]:
        """File name -> path of the vocabulary files."""

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`.

        Args:
            text: any string of Unicode scalar values.
            special: True = command tokens written in the text become their ids, as in the
                official code; False = they are ordinary text.

        Raises:
            TokenizerError: the text has a lone surrogate.
        """
        if not special:
            return self.encode_with(text, set())
        return self.encode_with(text, {token.text for token in self.special.tokens})

    def encode_with(self, text: str, allowed: set[str]) -> list[int]:
        """Like `encode`, where only the command tokens written as in `allowed` become ids."""
        if self.drops_blank_text and not text.strip():
            return []
        fragments: list[str | int] = [text] if text else []
        for token in self.special.tokens:
            if token.text not in allowed:
                continue
            fragments = [
                piece
                for fragment in fragments
                for piece in (
                    _split(fragment, token, self.stripped)
                    if isinstance(fragment, str)
                    else [fragment]
                )
            ]
        ids: list[int] = []
        for fragment in fragments:
            if isinstance(fragment, int):
                ids.append(fragment)
            else:
                ids.extend(self._encode_checked(fragment))
        return ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """Text of `ids`; command tokens are left out, or written out with `special`.

        Raises:
            TokenizerError: an id outside the vocabulary.
        """
        written = self.command_texts
        out = b""
        text_ids: list[int] = []
        for token_id in ids:
            if not 0 <= token_id < self.vocab_size:
                raise TokenizerError(
                    f"id {token_id} is outside the vocabulary of {self.vocab_size} tokens"
                )
            if token_id in written:
                out += self.decode_bytes(text_ids)
                text_ids = []
                if special:
                    out += (self.special_prefix + written[token_id]).encode()
            else:
                text_ids.append(token_id)
        out += self.decode_bytes(text_ids)
        return out.decode("utf-8", errors="replace")

    def settled(self, text: str) -> int:
        """How many characters of a decoded text stay as they are whatever token follows.

        If that is all, what follows is decoded without regard to what is in front, but for a space
        that is dropped where a text begins.
        """
        return len(text.rstrip(REPLACEMENT))  # a character may lack some of its bytes

    def _encode_checked(self, text: str) -> list[int]:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text has a lone surrogate {text[error.start]!r} at position {error.start}",
                hint="only valid Unicode can be encoded",
            ) from error
        return self.encode_text(text)


def _split(text: str, token: CommandToken, stripped: str | None) -> list[str | int]:
    parts = text.split(token.text)
    out: list[str | int] = []
    for index, part in enumerate(parts):
        is_last = index == len(parts) - 1
        if token.lstrip and not is_last:
            part = part.rstrip(stripped)
        if part:
            out.append(part)
        if not is_last:
            out.append(token.id)
    return out
