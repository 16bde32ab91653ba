"""Requests as the clients of BigModel, zhipuai and zai-sdk, write them."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, StrictBool

from openglm.serve.bounds import MOST_TOOLS
from openglm.serve.chat_call import ChatCall
from openglm.serve.errors import ServeError
from openglm.serve.openai.requests import ChatRequest, Function, Wire
from openglm.serve.runner import Place


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


Text = Annotated[str, BeforeValidator(_as_text)]
"""The official tests send numbers as request ids."""


class Tool(Wire):
    """A tool; only functions can be called here."""

    type: Literal["function", "retrieval", "web_search"] = "function"
    function: Function | None = None


class Meta(Wire):
    """Who is who in a role play (CharGLM)."""

    user_info: str = ""
    bot_info: str = ""
    bot_name: str = ""
    user_name: str = ""

    def text(self) -> str:
        """The same in words, for models that were not trained on it."""
        return (
            f"你要扮演{self.bot_name}。{self.bot_info}\n"
            f"与你对话的是{self.user_name}。{self.user_info}"
        )


class V4ChatRequest(ChatRequest):
    """POST /api/paas/v4/chat/completions."""

    request_id: Annotated[Text, Field(min_length=1, max_length=128)] | None = None
    user_id: Annotated[Text, Field(max_length=128)] | None = None
    do_sample: StrictBool | None = None
    tools: Annotated[list[Tool], Field(max_length=MOST_TOOLS)] | None = None  # type: ignore[assignment]
    meta: Meta | None = None
    extra: dict[str, Any] | None = None

    def sampling(self) -> dict[str, Any]:
        """As in /v1; without `do_sample` the likeliest tokens are taken, whatever else is set."""
        found = super().sampling()
        return found | {"temperature": 0.0, "n": 1} if self.do_sample is False else found

    def call(self, place: Place) -> ChatCall:
        """What is asked for."""
        for tool in self.tools or ():
            if tool.type != "function":
                raise ServeError(
                    "unsupported", f"tools of type {tool.type} are not available here", "tools"
                )
            if tool.function is None:
                raise ServeError("missing_field", "a tool has no function", "tools")
        if self.extra is not None:
            raise ServeError("unsupported", "extra: no code model is served here", "extra")
        call = super().call(place)
        if self.meta is None:
            return call
        told = {"role": "system", "content": self.meta.text()}
        return dataclasses.replace(call, messages=[told, *call.messages])
