"""Objects of /v1: answers of a chat, whole and in chunks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from openglm.chat.streaming import CallPiece, ReplyPiece
from openglm.results import TokenLogprob
from openglm.serve.chat_call import ChatAnswer, ChatPiece
from openglm.serve.wire import TEXT, Mould, event, new_id
from openglm.serve.writing import Usage

REASONS = {"deadline": "length"}
"""How a request ended -> OpenAI's word, where it is another."""
LEAST_LOGPROB = -9999.0
"""JSON has no -inf; this is what OpenAI writes for it."""


@dataclass(slots=True)
class Draft:
    """One answer as it grows."""

    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass(slots=True)
class Completion:
    """The object that answers a call.

    Args:
        model: as the client named it.
        copies: see `Sampled.copies`.
        calls_functions: see `ChatRequest.calls_functions`; an answer has one call then, its first.
    """

    model: str
    copies: int = 1
    calls_functions: bool = False
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    created: int = field(default_factory=lambda: int(time.time()))
    drafts: dict[int, Draft] = field(default_factory=dict)
    call_ids: dict[tuple[int, int], str] = field(default_factory=dict)
    moulds: dict[int, Mould] = field(default_factory=dict)

    def frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The object around choices."""
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }

    def places(self, index: int) -> range:
        """The answers that stand for what is written as number `index`."""
        return range(index * self.copies, (index + 1) * self.copies)

    async def collect(self, found: ChatAnswer) -> dict[str, Any]:
        """All answers, once they are finished."""
        async with aclosing(found.pieces()) as pieces:
            async for piece in pieces:
                self.take(piece)
        return self.whole(found.usage)

    def take(self, piece: ChatPiece) -> None:
        """Adds a piece to its answer."""
        draft = self.drafts.setdefault(piece.index, Draft())
        for part in piece.pieces:
            if isinstance(part, str):
                draft.text += part
            else:
                call = self._call(piece.index, part)
                if part.name is not None:
                    draft.calls.append(
                        {
                            "id": call["id"],
                            "type": "function",
                            "function": {"name": part.name, "arguments": ""},
                        }
                    )
                draft.calls[part.index]["function"]["arguments"] += part.arguments
        draft.logprobs += piece.logprobs
        draft.finish_reason = piece.finish_reason or draft.finish_reason

    def whole(self, used: Usage) -> dict[str, Any]:
        """All answers, once they are finished."""
        choices = []
        for index in range(len(self.drafts) * self.copies):
            draft = self.drafts[index // self.copies]
            message: dict[str, Any] = {"role": "assistant", "content": draft.text, "refusal": None}
            if draft.calls:
                message |= {"content": draft.text or None} | self._told(draft.calls)
            choices.append(
                {
                    "index": index,
                    "message": message,
                    "logprobs": logprobs(draft.logprobs),
                    "finish_reason": self._reason(draft.finish_reason),
                }
            )
        return self.frame("chat.completion", choices) | usage(used)

    def events(self, piece: ChatPiece, index: int) -> Iterator[bytes]:
        """Events of a stream that say what a piece says."""
        texts = [part for part in piece.pieces if isinstance(part, str)]
        if piece.logprobs or piece.finish_reason or len(texts) < len(piece.pieces):
            return map(event, self.chunks(piece, index))
        if index not in self.moulds:
            self.moulds[index] = Mould(self.chunk(index, {"content": TEXT}))
        return map(self.moulds[index], texts)

    def chunks(self, piece: ChatPiece, index: int) -> list[dict[str, Any]]:
        """Chunks of a stream that say what a piece says."""
        parts = [part for part in piece.pieces if not self._is_left_out(part)]
        deltas = [self._delta(part, index) for part in parts]
        scored = logprobs(piece.logprobs)
        if scored is not None and not deltas:
            deltas = [{"content": ""}]
        found = [self.chunk(index, delta) for delta in deltas]
        if scored is not None:
            found[0]["choices"][0]["logprobs"] = scored
        if piece.finish_reason is not None:
            found.append(self.chunk(index, {}, self._reason(piece.finish_reason)))
        return found

    def chunk(
        self, index: int, delta: dict[str, Any], finish_reason: str | None = None
    ) -> dict[str, Any]:
        """One chunk."""
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self.frame("chat.completion.chunk", [choice])

    def _told(self, calls: list[dict[str, Any]]) -> dict[str, Any]:
        """Calls, as part of a message or of what is added to one."""
        if self.calls_functions:
            return {"function_call": calls[0]["function"]}
        return {"tool_calls": calls}

    def _is_left_out(self, part: ReplyPiece) -> bool:
        """Whether it is of a second call, where there can be one only."""
        return self.calls_functions and isinstance(part, CallPiece) and part.index > 0

    def _reason(self, finish_reason: str | None) -> str:
        word = reason(finish_reason)
        return "function_call" if self.calls_functions and word == "tool_calls" else word

    def _delta(self, part: ReplyPiece, index: int) -> dict[str, Any]:
        if isinstance(part, str):
            return {"content": part}
        return self._told([self._call(index, part)])

    def _call(self, index: int, part: CallPiece) -> dict[str, Any]:
        """A piece of a call; its id comes with the name, and is the same ever after."""
        function: dict[str, Any] = {"arguments": part.arguments}
        if part.name is None:
            return {"index": part.index, "function": function}
        name = self.call_ids.setdefault((index, part.index), new_id("call_"))
        whole = {"name": part.name} | function
        return {"index": part.index, "id": name, "type": "function", "function": whole}


def usage(used: Usage) -> dict[str, Any]:
    """`usage`, as part of an object."""
    return {
        "usage": {
            "prompt_tokens": used.prompt_tokens,
            "completion_tokens": used.completion_tokens,
            "total_tokens": used.prompt_tokens + used.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": used.cached_tokens},
        }
    }


def reason(finish_reason: str | None) -> str:
    """How an answer ended, in OpenAI's words."""
    return REASONS.get(finish_reason or "stop", finish_reason or "stop")


def logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """`logprobs` of a chat's choice."""
    if not tokens:
        return None
    found = [_logprob(one) | {"top_logprobs": [_logprob(t) for t in one.top]} for one in tokens]
    return {"content": found, "refusal": None}


def _logprob(one: TokenLogprob) -> dict[str, Any]:
    least = max(one.log_probability, LEAST_LOGPROB)
    return {"token": one.text, "logprob": least, "bytes": [*one.bytes]}
