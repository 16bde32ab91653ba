"""The Chinese sentencepiece tokenizer of GLM-Large-Chinese and GLM-10B-Chinese."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.sentencepiece_model import SPACE_MARK, read_model, spelled
from openglm.tokenizers.special import layout

MODEL_FILE = "cog-pretrain.model"


class ChineseTokenizer(Tokenizer):
    """Reads `cog-pretrain.model`; a dummy space precedes every fragment, as officially.

    Args:
        path: the `.model` file.
        kind: "chinese", or "chinese-unfixed" for the ids of the GLM-10B-Chinese Megatron files.
    """

    def __init__(self, path: Path, kind: str = "chinese") -> None:
        self.kind = kind
        self.path = path
        self.model = read_model(path)
        self.num_text_tokens = int(self.model.vocab_size())
        self.special = layout(kind).resolve(self.num_text_tokens)

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        return list(self.model.encode(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """See `Tokenizer.decode_bytes`; sentencepiece drops the space in front of the first."""
        known = [i for i in ids if i < self.num_text_tokens]  # one id above is used by no token
        text: str = self.model.decode(known) if known else ""
        return text.encode()

    def pieces(self) -> list[str]:
        """See `Tokenizer.pieces`."""
        spelled = [
            self.model.id_to_piece(i).replace(SPACE_MARK, " ") for i in range(self.num_text_tokens)
        ]
        return spelled + [""] * (self.vocab_size - self.num_text_tokens)

    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        texts = [spelled(self.model, i) for i in range(self.num_text_tokens)]
        return texts + [b""] * (self.vocab_size - self.num_text_tokens)

    def files(self) -> dict[str, Path]:
        """See `Tokenizer.files`."""
        return {MODEL_FILE: self.path}
