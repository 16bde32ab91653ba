"""`meta.json` beside a recording: sizes and special token ids that the checkpoint may lack."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from openglm.errors import VerificationError


def recorded_description(golden: Path) -> dict[str, Any] | None:
    """The sizes in `meta.json` beside a golden, or None: Megatron folders lack the head count."""
    path = golden.parent / "meta.json"
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise VerificationError(f"{path} is not JSON: {error}") from error
    is_description = isinstance(description, dict) and "num_attention_heads" in description
    return description if is_description else None


def special_ids(golden: Path) -> dict[str, int]:
    """Ids of the special tokens by the names of the recorded code."""
    path = golden.parent / "meta.json"
    if not path.is_file():
        raise VerificationError(
            f"{golden} needs special token ids", hint=f"they are expected in {path}"
        )
    ids: dict[str, int] = json.loads(path.read_text(encoding="utf-8"))["special_token_ids"]
    return ids
