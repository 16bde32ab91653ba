"""Text from tokens as they come, never half a character."""

from __future__ import annotations

from openglm.tokenizers import Tokenizer

REPLACEMENT = "\ufffd"


class TextStream:
    """Decodes a growing list of tokens.

    A character whose bytes are spread over several tokens is held back until it is complete; the
    pieces put together equal the decoded whole.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.sent = ""

    def push(self, token_id: int) -> str:
        """Adds a token; returns the text that is now certain, possibly ""."""
        self.ids.append(token_id)
        text = self.tokenizer.decode(self.ids)
        certain = text.rstrip(REPLACEMENT)
        if not certain.startswith(self.sent):  # a lossy tokenizer changed its mind: wait
            return ""
        piece = certain[len(self.sent) :]
        self.sent = certain
        return piece

    def finish(self) -> str:
        """The rest, once no token follows; broken bytes come out as U+FFFD."""
        rest = self.tokenizer.decode(self.ids)[len(self.sent) :]
        self.sent += rest
        return rest
