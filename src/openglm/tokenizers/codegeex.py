"""The tokenizer of CodeGeeX-13B: GPT-2's byte-level BPE with tokens for runs of spaces.

Runs of 2 to 10 spaces, the longest first, are one token each; single spaces, tabs and newlines are
ordinary text. Decoding is exact. The official code cleaned up spaces in front of punctuation, as
transformers 4 did by default, which changes programs (`end = ' '` became `end =''`); with
`tokenizer.clean_up_spaces = True` so does this one, for comparison with published numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from openglm.tokenizers.bpe import BytePairTokenizer

ADDED_FILE = "added_tokens.json"
LONGEST_RUN = 10
FIRST_RUN = "extra_10"
"""Role of the token for two spaces; those for 3 to 10 follow."""
_RUNS = re.compile(" {2,}")
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
"""The replacements of transformers 4, in its order."""
CLEANED = "".join(written for written, _ in CLEAN_UP)
"""All characters in them; whatever they do, they do between two others."""


class CodeGeeXTokenizer(BytePairTokenizer):
    """Reads `vocab.json` and `merges.txt`, those of GPT-2.

    Args:
        folder: where both files are.
    """

    drops_blank_text = False
    clean_up_spaces = False
    """Set it to decode as the official code does, which is lossy."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "codegeex")
        first = self.special.get(FIRST_RUN).id
        self.run_ids = {n: first + n - 2 for n in range(2, LONGEST_RUN + 1)}
        self.bytes_of |= {token: b" " * n for n, token in self.run_ids.items()}

    @cached_property
    def command_texts(self) -> dict[int, str]:
        """See `Tokenizer.command_texts`; tokens for runs of spaces are text."""
        runs = set(self.run_ids.values())
        return {i: text for i, text in self.special.texts.items() if i not in runs}

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """See `Tokenizer.text_ids`."""
        return super().text_ids | set(self.run_ids.values())

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """See `Tokenizer.decode`."""
        text = super().decode(ids, special)
        return clean_up(text) if self.clean_up_spaces else text

    def settled(self, text: str) -> int:
        """See `Tokenizer.settled`; the clean-up may change all characters that it looks at."""
        return len(text[: super().settled(text)].rstrip(CLEANED if self.clean_up_spaces else ""))

    def encode_text(self, text: str) -> list[int]:
        """See `Tokenizer.encode_text`."""
        ids: list[int] = []
        done = 0
        for match in _RUNS.finditer(text):
            ids += super().encode_text(text[done : match.start()])
            rest = match.end() - match.start()
            while rest > 1:
                ids.append(self.run_ids[min(rest, LONGEST_RUN)])
                rest -= min(rest, LONGEST_RUN)
            done = match.end() - rest  # a single space left over belongs to the next word
        return ids + super().encode_text(text[done:])


def is_folder(folder: Path) -> bool:
    """Whether GPT-2's files in a folder belong to CodeGeeX: it names its extra tokens."""
    path = folder / ADDED_FILE
    return path.is_file() and b"<|extratoken_1|>" in path.read_bytes()


def clean_up(text: str) -> str:
    """The lossy clean-up of the official decoding."""
    for written, cleaned in CLEAN_UP:
        text = text.replace(written, cleaned)
    return text
