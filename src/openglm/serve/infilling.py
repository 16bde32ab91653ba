"""What is missing between two texts, whatever dialect asks for it: a blank, or CodeGeeX4's layout.

CodeGeeX4 reads both texts in the layout of its published guide, as a user's message; it has GLM-4's
vocabulary, so every such model is asked that way. Models that fill blanks get one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openglm.chat import Message
from openglm.engine.prompt import OFFICIAL_MASKS
from openglm.errors import RequestError
from openglm.serve.hosted import Hosted
from openglm.serve.runner import Place
from openglm.serve.writing import Writing


@dataclass(frozen=True, slots=True)
class Gap:
    """Where something is missing.

    Args:
        before: text in front of it.
        behind: text that comes after it.
        language: of both, as CodeGeeX spells it; empty if nobody said.
        path: of the file that they are from; empty if nobody said.
        files: path and content of others that it may depend on.
    """

    before: str
    behind: str
    language: str = ""
    path: str = ""
    files: Sequence[tuple[str, str]] = ()

    def message(self) -> str:
        """As CodeGeeX4 reads it: what stands behind comes first.

        Source: `guides/Infilling_guideline.md` of the CodeGeeX4 repository.
        """
        files = (f"###REFERENCE:\n###PATH:{path}\n{text}\n" for path, text in self.files)
        return (
            f"{''.join(files)}###PATH:{self.path}\n###LANGUAGE:{self.language}\n###MODE:BLOCK\n"
            f"<|code_suffix|>{self.behind}<|code_prefix|>{self.before}<|code_middle|>"
        )

    def text(self, blank: str) -> str:
        """As a text with a blank; language and paths are comments, as in CodeGeeX's prompts.

        Raises:
            RequestError: it has further blanks.
        """
        files = "".join(f"# path: {path}\n{text}\n" for path, text in self.files)
        language = f"# language: {self.language}\n" if self.language else ""
        path = f"# path: {self.path}\n" if self.path else ""
        before = f"{files}{language}{path}{self.before}"
        for text in (before, self.behind):
            if any(mask in text for mask in OFFICIAL_MASKS):
                message = "what stands before or behind has blanks of its own"
                raise RequestError(message, hint="use /v1/fill")
        return f"{before}{blank}{self.behind}"


def can_infill(hosted: Hosted) -> bool:
    """Whether a model writes between two texts."""
    return _reads_layout(hosted) or hosted.can_fill


async def infill(
    hosted: Hosted, gaps: Sequence[Gap], sampling: Mapping[str, Any], place: Place
) -> Writing:
    """Prepares what is missing in each gap, for a model that `can_infill`.

    Raises:
        RequestError: it cannot be honoured.
    """
    if _reads_layout(hosted):
        asked = [[Message("user", gap.message())] for gap in gaps]
        return await hosted.prepare(asked, "chat", sampling, place=place, opening="\n")
    texts = [gap.text(hosted.blank) for gap in gaps]
    return await hosted.prepare(texts, "fill", sampling, place=place)


def _reads_layout(hosted: Hosted) -> bool:
    return hosted.kind == "glm4"
