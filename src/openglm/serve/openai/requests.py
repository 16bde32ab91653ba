"""Requests as OpenAI's clients write them; null is the same as nothing everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import Field, StrictBool, WithJsonSchema

from openglm.serve.bounds import (
    MOST_COMPLETIONS,
    MOST_MESSAGES,
    MOST_PROMPTS,
    MOST_STOPS,
    MOST_TOOLS,
)
from openglm.serve.chat_call import ChatCall
from openglm.serve.conversation import MESSAGE, unread_of
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire
from openglm.serve.runner import Place

Fraction = Annotated[float, Field(ge=0, le=1, strict=True)]  # NaN is not in the range
Penalty = Annotated[float, Field(ge=-2, le=2, strict=True)]
Count = Annotated[int, Field(ge=1, le=1 << 31, strict=True)]
Ids = Annotated[list[Annotated[int, Field(ge=0, strict=True)]], Field(min_length=1)]
"""Tokens of one text; which there are is known of each model."""
Stop = str | Annotated[list[str], Field(max_length=MOST_STOPS)]


AnyMessage = Annotated[dict[str, Any], WithJsonSchema(MESSAGE)]
"""Read by `conversation`, which names the index of one that it cannot read."""


class StreamOptions(Wire):
    """`stream_options`."""

    include_usage: StrictBool | None = None


class Function(Wire):
    """A function that may be called."""

    name: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w.\-]+$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def described(self) -> dict[str, Any]:
        """What the model reads of it: nothing that the client says to a server only."""
        return self.model_dump(include={*Function.model_fields}, exclude_none=True)


class Tool(Wire):
    """A tool: a function."""

    type: Literal["function"] = "function"
    function: Function


class NamedFunction(Wire):
    """Which function must be called."""

    name: str


class NamedTool(Wire):
    """Which tool must be called."""

    type: Literal["function"] = "function"
    function: NamedFunction


class JsonSchema(Wire):
    """`response_format.json_schema`; answers are held to it with or without `strict`."""

    name: str = ""
    schema_: Annotated[dict[str, Any], Field(alias="schema", default_factory=dict)]
    strict: StrictBool | None = None


class ResponseFormat(Wire):
    """`response_format`."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: JsonSchema | None = None

    def unread(self) -> Iterator[str]:
        """As elsewhere; a schema goes with its type."""
        yield from super().unread()
        if self.json_schema is not None and self.type != "json_schema":
            yield "json_schema"


class Sampled(Wire):
    """Settings that chats and completions share, OpenAI's and, behind them, our own."""

    model: str
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    top_p: Fraction | None = None
    max_tokens: Count | None = None
    n: Annotated[int, Field(ge=1, le=MOST_COMPLETIONS, strict=True)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-(1 << 63), lt=1 << 64, strict=True)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    top_k: Annotated[int, Field(ge=0, strict=True)] | None = None
    min_p: Fraction | None = None
    typical_p: Fraction | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100, strict=True)] | None = None
    no_repeat_ngram_size: Annotated[int, Field(ge=0, le=1024, strict=True)] | None = None
    min_tokens: Annotated[int, Field(ge=0, le=1 << 31, strict=True)] | None = None
    bad_words: Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None

    def sampling(self) -> dict[str, Any]:
        """The settings that were given, as `SamplingParams` has them."""
        names = (
            "temperature", "top_p", "n", "stop", "presence_penalty", "frequency_penalty", "top_k",
            "min_p", "typical_p", "repetition_penalty", "no_repeat_ngram_size", "min_tokens",
            "bad_words", "max_tokens",
        )  # fmt: skip
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if found.get("stop") in ([], ""):
            del found["stop"]
        if found.get("top_p") == 0:
            found["top_p"] = 1e-6  # OpenAI takes it for the likeliest token
        if self.is_greedy:
            found.pop("n", None)  # all would be equal: written once, and given so many times
        if self.seed is not None:
            found["seed"] = self.seed % (1 << 64)
        if self.logit_bias:
            found["logit_bias"] = _bias(self.logit_bias)
        return found

    @property
    def is_greedy(self) -> bool:
        """Whether the likeliest tokens are taken, so that all answers are equal."""
        return self.temperature == 0

    @property
    def wants_usage(self) -> bool:
        """Whether a stream shall end with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def copies(self) -> int:
        """How many equal answers stand for each that is written."""
        return (self.n or 1) if self.is_greedy else 1


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    functions: Annotated[list[Function], Field(max_length=MOST_TOOLS)] | None = None
    function_call: Literal["none", "auto"] | NamedFunction | None = None
    response_format: ResponseFormat | None = None

    def call(self, place: Place) -> ChatCall:
        """What is asked for."""
        sampling = self.sampling()
        if self.max_completion_tokens is not None:
            sampling["max_tokens"] = self.max_completion_tokens
        if self.logprobs:
            sampling["logprobs"] = self.top_logprobs or 0
        elif self.top_logprobs:
            raise ServeError("invalid_field", "top_logprobs needs logprobs=true", "top_logprobs")
        functions, choice = self._functions()
        return ChatCall(
            messages=self.messages,
            tools=[function.described() for function in functions],
            tool_choice=choice,
            schema=self._schema(),
            sampling=sampling,
            place=place,
        )

    def unread(self) -> Iterator[str]:
        """As elsewhere, and of the messages what no model is told."""
        yield from super().unread()
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            yield "max_tokens"
        for index, message in enumerate(self.messages):
            yield from (f"messages.{index}.{name}" for name in unread_of(message))

    @property
    def calls_functions(self) -> bool:
        """Whether calls are asked for, and answered, as they were before there were tools."""
        return self.functions is not None or self.function_call is not None

    def _functions(self) -> tuple[Sequence[Function], str]:
        """What may be called, and `ChatCall.tool_choice`."""
        if not self.calls_functions:
            choice = self.tool_choice or "auto"
            named = choice.function.name if isinstance(choice, NamedTool) else choice
            return [tool.function for tool in self.tools or ()], named
        if self.tools is not None or self.tool_choice is not None:
            message = "functions and function_call are the older tools and tool_choice: not both"
            raise ServeError("invalid_field", message, "functions")
        called = self.function_call or "auto"
        return self.functions or (), called if isinstance(called, str) else called.name

    def _schema(self) -> dict[str, Any] | None:
        """What `response_format` asks of the answer."""
        if self.response_format is None or self.response_format.type == "text":
            return None
        if self.response_format.type == "json_object":
            return {"type": "object"}
        if self.response_format.json_schema is None:
            raise ServeError(
                "missing_field",
                "response_format of type json_schema needs json_schema",
                "response_format.json_schema",
            )
        return self.response_format.json_schema.schema_


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MOST_PROMPTS)]
        | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=MOST_PROMPTS)]
    )
    max_tokens: Annotated[int, Field(ge=0, le=1 << 31, strict=True)] | None = None
    suffix: str | None = None
    echo: StrictBool | None = None
    best_of: Annotated[int, Field(ge=1, le=MOST_COMPLETIONS, strict=True)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5, strict=True)] | None = None

    def sampling(self) -> dict[str, Any]:
        """As in a chat; 16 tokens unless told otherwise, as OpenAI has it."""
        found = {"max_tokens": 16} | super().sampling()
        if not self.writes:
            return {"max_tokens": 1}  # the least that a request can ask for; it is not made
        if self.logprobs is not None:
            found["logprobs"] = self.logprobs
        if self.best_of is not None and not self.is_greedy:
            if self.stream and self.best_of > (self.n or 1):
                raise ServeError(
                    "invalid_field", "best_of is only known at the end: not with stream", "best_of"
                )
            found["best_of"] = self.best_of
        return found

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, as texts or as token ids."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast("list[str | list[int]]", [self.prompt] if is_one else self.prompt)

    @property
    def writes(self) -> bool:
        """Anything behind the prompts."""
        return self.max_tokens != 0

    @property
    def prompt_logprobs(self) -> int | None:
        """Of how many alternatives the prompts' own tokens are reported; None = not at all."""
        return self.logprobs if self.echo else None

    @property
    def copies(self) -> int:
        """As in a chat; what is not written is equal, too."""
        return super().copies if self.writes else self.n or 1


class FillRequest(Sampled):
    """POST /v1/fill: a text whose blanks are filled."""

    text: str
    logprobs: Annotated[int, Field(ge=0, le=20, strict=True)] | None = None

    def sampling(self) -> dict[str, Any]:
        """As in a chat."""
        found = super().sampling()
        return found if self.logprobs is None else found | {"logprobs": self.logprobs}


def _bias(given: dict[str, float]) -> dict[int, float]:
    """Ids as numbers."""
    try:
        return {int(token): bias for token, bias in given.items()}
    except ValueError as error:
        raise ServeError(
            "invalid_field", f"logit_bias has a key that is no token id: {error}", "logit_bias"
        ) from error
