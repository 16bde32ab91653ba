"""Opening a sentencepiece file with errors a person can act on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from openglm.errors import TokenizerError

LFS_MARK = b"version https://git-lfs"


def read_model(path: Path) -> Any:
    """The `SentencePieceProcessor` of `path`; `TokenizerError` if missing or damaged."""
    import sentencepiece

    if not path.is_file():
        raise TokenizerError(f"there is no tokenizer file {path}")
    content = path.read_bytes()
    if content.startswith(LFS_MARK):
        raise TokenizerError(
            f"{path} is a Git LFS pointer of {len(content)} bytes, not the file itself",
            hint="fetch it with `git lfs pull` or download it again",
        )
    model = sentencepiece.SentencePieceProcessor()
    try:
        model.LoadFromSerializedProto(content)
    except RuntimeError as error:
        raise TokenizerError(
            f"{path} ({len(content)} bytes) is not a complete sentencepiece model",
            hint="download it again",
        ) from error
    return model
