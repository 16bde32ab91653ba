"""What /v1 answers: the objects of `openai.objects`, `completions` and `fill` as types."""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

Reason = Literal["stop", "length", "tool_calls"]


class PromptDetails(TypedDict):
    """Of the tokens of prompts."""

    cached_tokens: int


class UsageObject(TypedDict):
    """Tokens of a call."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(TypedDict):
    """A token that could have come."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TopLogprob):
    """A token that came, and the likeliest in its place."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(TypedDict):
    """Tokens of a chat's answer."""

    content: list[ChatLogprob]
    refusal: None


class FunctionCall(TypedDict):
    """A function, and its arguments as JSON."""

    name: str
    arguments: str


class ToolCall(TypedDict):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(TypedDict):
    """What the model says."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    tool_calls: NotRequired[list[ToolCall]]


class ChatChoice(TypedDict):
    """One answer."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Reason


class ChatCompletion(TypedDict):
    """The answers to a conversation."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChatChoice]
    usage: UsageObject


class FunctionDelta(TypedDict):
    """A piece of a call; its name comes first."""

    name: NotRequired[str]
    arguments: str


class ToolCallDelta(TypedDict):
    """A piece of a call; id and type come with the first."""

    index: int
    id: NotRequired[str]
    type: NotRequired[Literal["function"]]
    function: FunctionDelta


class Delta(TypedDict):
    """A piece of an answer."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]
    tool_calls: NotRequired[list[ToolCallDelta]]


class ChunkChoice(TypedDict):
    """A piece of one answer; the last has a reason."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Reason | Literal["network_error"] | None


class ChatCompletionChunk(TypedDict):
    """An event of a stream; with `stream_options.include_usage` a last one has usage only."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: NotRequired[UsageObject]


class TextLogprobs(TypedDict):
    """Tokens of a text, four lists of one length; null stands where nothing was before."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(TypedDict):
    """One completion; null is the reason of all its chunks but the last."""

    index: int
    text: str
    finish_reason: Reason | None
    logprobs: TextLogprobs | None


class TextCompletion(TypedDict):
    """Completions, whole or in an event of a stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[TextChoice]
    usage: NotRequired[UsageObject]


class Blank(TypedDict):
    """What was written into a blank."""

    text: str
    finish_reason: Reason
    logprobs: ChatLogprobs | None


class FillChoice(TypedDict):
    """The text with its blanks filled, and what was written into each."""

    index: int
    text: str
    blanks: list[Blank]


class Filled(TypedDict):
    """A text whose blanks are filled."""

    id: str
    object: Literal["fill"]
    created: int
    model: str
    choices: list[FillChoice]
    usage: UsageObject


class BlankChunk(TypedDict):
    """A piece of a blank; the last has a reason."""

    index: int
    blank: int
    text: str
    finish_reason: Reason | None
    logprobs: ChatLogprobs | None


class FilledChunk(TypedDict):
    """An event of a stream; the last has usage only."""

    id: str
    object: Literal["fill.chunk"]
    created: int
    model: str
    choices: list[BlankChunk]
    usage: NotRequired[UsageObject]
