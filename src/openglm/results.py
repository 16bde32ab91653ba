"""What the methods of `LanguageModel` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openglm.chat import Message


@dataclass(frozen=True, slots=True)
class Blank:
    """One filled blank.

    Args:
        text: what was filled in.
        token_ids: its tokens, without `sop` and end token.
        log_probability: mean over its tokens under the model; NaN if it is empty.
        finish_reason: "stop" (the model ended it) or "length" (max_tokens).
    """

    text: str
    token_ids: list[int]
    log_probability: float
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with its blanks filled.

    Args:
        text: the whole.
        blanks: what was filled in, left to right.
        fragments: the text around the blanks, one more than there are blanks.
        seed: repeats a sampled result.
    """

    text: str
    blanks: list[Blank]
    fragments: list[str]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A continuation (`text` is without the prompt), and the seed that repeats it."""

    text: str
    token_ids: list[int]
    log_probability: float
    finish_reason: str
    seed: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of streamed text and the blank that it belongs to."""

    blank: int
    text: str


@dataclass(frozen=True, slots=True)
class ChoiceScore:
    """A candidate answer and its score, higher is better."""

    choice: str
    score: float
    log_probabilities: list[float]


@dataclass(frozen=True, slots=True)
class ChatReply:
    """An answer in a conversation.

    Args:
        content: the answer's text, or what was written for a tool.
        messages: what to append to the conversation before the next message.
        tool: name of the tool that is called, None for an answer.
        arguments: of the call; None without one, or if it is no readable call.
        token_ids: as generated, without the end token.
        finish_reason: "stop" or "length" (max_tokens).
        seed: repeats the answer.
    """

    content: str
    messages: tuple[Message, ...]
    tool: str | None
    arguments: dict[str, Any] | None
    token_ids: list[int]
    finish_reason: str
    seed: int
