"""BERT's uncased wordpiece tokenizer, for GLM-Base, GLM-Large and the English generation models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.special import layout

VOCAB_FILE = "vocab.txt"
CONTINUES = "##"


class WordPieceTokenizer(Tokenizer):
    """Lower-cases, strips accents, splits at punctuation and Chinese characters, then matches.

    Decoding joins the pieces with spaces, as BERT does: the original spacing is not recoverable.

    Args:
        path: `vocab.txt`, one token per line.
    """

    kind = "bert"
    special_prefix = " "

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Pipeline
        from tokenizers.models import WordPiece
        from tokenizers.normalizers import BertNormalizer
        from tokenizers.pre_tokenizers import BertPreTokenizer

        if not path.is_file():
            raise TokenizerError(f"there is no tokenizer file {path}")
        self.path = path
        try:
            self.tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except UnicodeDecodeError as error:
            raise TokenizerError(
                f"{path} is not UTF-8: {error}", hint="download it again"
            ) from error
        self.num_text_tokens = len(self.tokens)
        self.special = layout(self.kind).resolve(self.num_text_tokens)
        for token in self.special.tokens:
            appended = token.role in ("sop", "eop")
            found = "missing" if token.id >= len(self.tokens) else repr(self.tokens[token.id])
            if not appended and found != repr(token.text):
                raise TokenizerError(
                    f"{path} is not BERT's uncased vocabulary: line {token.id + 1} is "
                    f"{found}, not {token.text!r}"
                )
        # No special tokens are added to the pipeline, so text never turns into them.
        vocabulary = {token: i for i, token in enumerate(self.tokens)}
        unknown = self.special.get("unk").text
        self.pipeline = Pipeline(
            WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=100)
        )
        self.pipeline.normalizer = BertNormalizer(lowercase=True)
        self.pipeline.pre_tokenizer = BertPreTokenizer()

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        return list(self.pipeline.encode(text, add_special_tokens=False).ids)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`; words come out with a space before each."""
        return "".join(self._spell(i) for i in ids).encode()

    def decode(self, ids: Sequence[int], special: bool = False) -> str:  # type: ignore[override]
        """See `Tokenizer.decode`; the leading space of the first word is dropped."""
        return super().decode(ids, special).strip(" ")

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        command = self.special.ids
        return ["" if i in command else self._spell(i) for i in range(self.vocab_size)]

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {VOCAB_FILE: self.path}

    def _spell(self, token_id: int) -> str:
        token = self.tokens[token_id]
        return token.removeprefix(CONTINUES) if token.startswith(CONTINUES) else " " + token
