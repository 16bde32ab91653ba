"""What the methods of `LanguageModel` return."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from openglm.chat import Message


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and how likely the model found it, before all sampling settings.

    Args:
        token_id: its id.
        text: what it adds to the text; U+FFFD stands for bytes of an incomplete character.
        bytes: the same in UTF-8.
        log_probability: natural logarithm.
        top: the likeliest tokens at this place, best first; the chosen one need not be among them.
    """

    token_id: int
    text: str
    bytes: bytes
    log_probability: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Blank:
    """One filled blank.

    Args:
        text: what was filled in, without a stop string.
        token_ids: its tokens, without `sop` and end token; those of a stop string are among them.
        log_probability: mean over its tokens under the model; NaN if it is empty.
        finish_reason: "stop" (the model or a stop string ended it) or "length" (max_tokens).
        logprobs: of each token, if `logprobs` was asked for.
    """

    text: str
    token_ids: list[int]
    log_probability: float
    finish_reason: str
    logprobs: tuple[TokenLogprob, ...] | None = None


@dataclass(frozen=True, slots=True)
class Filled:
    """A text with its blanks filled.

    Args:
        text: the whole.
        blanks: what was filled in, left to right.
        fragments: the text around the blanks, one more than there are blanks.
        seed: repeats a sampled result.
        others: if `n` was asked for, the results behind this one.
    """

    text: str
    blanks: list[Blank]
    fragments: list[str]
    seed: int
    others: tuple[Filled, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A continuation.

    Args:
        text: see `Blank`; the prompt is not part of it.
        token_ids: see `Blank`.
        log_probability: see `Blank`.
        finish_reason: see `Blank`.
        seed: repeats it.
        logprobs: see `Blank`.
        others: if `n` was asked for, the results behind this one.
    """

    text: str
    token_ids: list[int]
    log_probability: float
    finish_reason: str
    seed: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    others: tuple[Completion, ...] = ()


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
        logprobs: of each token, if `logprobs` was asked for.
        others: if `n` was asked for, the answers behind this one.
    """

    content: str
    messages: tuple[Message, ...]
    tool: str | None
    arguments: dict[str, Any] | None
    token_ids: list[int]
    finish_reason: str
    seed: int
    logprobs: tuple[TokenLogprob, ...] | None = None
    others: tuple[ChatReply, ...] = ()
