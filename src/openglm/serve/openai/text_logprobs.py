"""`logprobs` of a text: tokens, what they scored, and where in the text each of them begins."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from openglm.results import TokenLogprob
from openglm.serve.openai.objects import LEAST_LOGPROB


class Offsets:
    """Counts characters along tokens, which may hold parts of a character.

    Args:
        start: where the first token begins. Below 0 if it is spelt with a space that the text,
            at whose beginning it stands, does not have.
    """

    def __init__(self, start: int = 0) -> None:
        self.at = start
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def pass_by(self, raw: bytes) -> int:
        """Where a token of these bytes begins."""
        begin = max(self.at, 0)
        self.at += len(self._decoder.decode(raw))
        return begin


def start_of(text: str, tokens: Sequence[TokenLogprob]) -> int:
    """Where the first of the tokens of `text` begins, so that the last ends where the text does."""
    spelt = b"".join(token.bytes for token in tokens)
    return len(text) - len(spelt.decode("utf-8", errors="replace"))


def logprobs(tokens: Sequence[TokenLogprob], offsets: Offsets) -> dict[str, Any] | None:
    """`logprobs` of a completion; null for a token before which nothing stands."""
    if not tokens:
        return None
    return {
        "tokens": [one.text for one in tokens],
        "token_logprobs": [_value(one) for one in tokens],
        "top_logprobs": [_top(one) for one in tokens],
        "text_offset": [offsets.pass_by(one.bytes) for one in tokens],
    }


def _value(one: TokenLogprob) -> float | None:
    if math.isnan(one.log_probability):
        return None
    return max(one.log_probability, LEAST_LOGPROB)


def _top(one: TokenLogprob) -> dict[str, float | None] | None:
    """Text -> log p; of tokens with the same text the likeliest, which comes first."""
    if math.isnan(one.log_probability):
        return None
    return {other.text: _value(other) for other in reversed(one.top)}
