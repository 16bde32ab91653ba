"""Requests as the clients of BigModel, zhipuai and zai-sdk, write them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool, WithJsonSchema, field_validator

from openglm.serve.bigmodel.code import Extra
from openglm.serve.bounds import MOST_MESSAGES, MOST_TOOLS
from openglm.serve.chat_call import ChatCall
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire
from openglm.serve.openai.requests import AnyMessage, ChatRequest, Function
from openglm.serve.runner import Place

LONGEST_NAME = 128


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


Name = Annotated[
    str,
    Field(max_length=LONGEST_NAME),
    BeforeValidator(_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": LONGEST_NAME}, {"type": "number"}]}),
]
"""The official tests send numbers as request ids."""
RequestId = Annotated[Name, Field(min_length=1)]


class WebSearch(Wire):
    """`web_search` of a tool."""

    enable: StrictBool | None = None


class V4Tool(Wire):
    """A tool; only functions can be called here."""

    type: Literal["function", "retrieval", "web_search"] = "function"
    function: Function | None = None
    web_search: WebSearch | None = None

    @property
    def is_off(self) -> bool:
        """Whether it is a search that is switched off."""
        return self.web_search is not None and self.web_search.enable is False


class Meta(Wire):
    """Who is who in a role play (CharGLM)."""

    user_info: str | None = None
    bot_info: str | None = None
    bot_name: str | None = None
    user_name: str | None = None

    def text(self) -> str:
        """The same in words, for models that were not trained on it."""
        return (
            f"你要扮演{self.bot_name or ''}。{self.bot_info or ''}\n"
            f"与你对话的是{self.user_name or ''}。{self.user_info or ''}"
        )


class V4ChatRequest(ChatRequest):
    """POST /api/paas/v4/chat/completions."""

    messages: Annotated[list[AnyMessage], Field(max_length=MOST_MESSAGES)]
    request_id: RequestId | None = None
    user_id: Name | None = None
    do_sample: StrictBool | None = None
    tools: Annotated[list[V4Tool], Field(max_length=MOST_TOOLS)] | None = None  # type: ignore[assignment]
    meta: Meta | None = None
    extra: Extra | None = None

    @field_validator("tools")
    @classmethod
    def _switched_on(cls, tools: list[V4Tool] | None) -> list[V4Tool] | None:
        """What is switched off asks for nothing."""
        return tools and [tool for tool in tools if not tool.is_off]

    def unread(self) -> Iterator[str]:
        """As in /v1, and who asks; `extra` asks for code, so nobody talks."""
        names = ("messages", "meta", "user_id") if self.extra is not None else ("user_id",)
        yield from (name for name in names if getattr(self, name))
        yield from super().unread()

    @property
    def is_greedy(self) -> bool:
        """As in /v1, and without `do_sample`, whatever else is set."""
        return self.do_sample is False or super().is_greedy

    def sampling(self) -> dict[str, Any]:
        """As in /v1."""
        found = super().sampling()
        return found | {"temperature": 0.0} if self.is_greedy else found

    def call(self, place: Place) -> ChatCall:
        """What is asked for."""
        if not self.messages and self.extra is None:
            raise ServeError("invalid_field", "messages: there must be one at least", "messages")
        for tool in self.tools or ():
            if tool.type != "function":
                raise ServeError(
                    "unsupported", f"tools of type {tool.type} are not available here", "tools"
                )
            if tool.function is None:
                raise ServeError("missing_field", "a tool has no function", "tools")
        call = super().call(place)
        if self.meta is None:
            return call
        told = {"role": "system", "content": self.meta.text()}
        return dataclasses.replace(call, messages=[told, *call.messages])
