"""Objects of /api/paas/v4: answers of a chat, whole and in chunks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openglm.serve.chat_call import ChatPiece
from openglm.serve.openai.objects import Completion, usage
from openglm.serve.wire import new_id
from openglm.serve.writing import Usage


@dataclass(slots=True)
class V4Completion(Completion):
    """OpenAI's object with a request id; a stream says its usage where it says its end.

    Args:
        request_id: the client's, or one of ours.
        used: tokens of the call, which grow while it is answered.
    """

    request_id: str = field(default_factory=lambda: new_id("req-"))
    used: Usage = field(default_factory=Usage)

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """See `Completion.frame`."""
        # zero-argument super() does not work in a dataclass with slots before Python 3.14
        return Completion.frame(self, kind, choices) | {"request_id": self.request_id}

    def whole(self, used: Usage) -> dict[str, Any]:
        """See `Completion.whole`; LangChain's ChatZhipuAI reads no content that is null."""
        found = Completion.whole(self, used)
        for choice in found["choices"]:
            choice["message"]["content"] = choice["message"]["content"] or ""
        return found

    def chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        """See `Completion.chunk`; BigModel names the role in each."""
        return Completion.chunk(self, index, {"role": "assistant"} | delta, finish_reason)

    def chunks(self, piece: ChatPiece, index: int) -> list[dict[str, Any]]:
        """See `Completion.chunks`."""
        found = Completion.chunks(self, piece, index)
        if piece.finish_reason is not None:
            found[-1] |= usage(self.used)
        return found

    def broken_off(self) -> dict[str, Any]:
        """The chunk in front of an error: some clients read no other sign of it."""
        return self.chunk(0, {}, "network_error")
