"""A chat call, whatever dialect it came in: conversation in, pieces of answers out."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from openglm.chat.streaming import ReplyPiece, ReplyReader
from openglm.engine.prompt import Prompt
from openglm.errors import RequestError
from openglm.results import TokenLogprob
from openglm.serve.conversation import conversation
from openglm.serve.errors import ServeError
from openglm.serve.hosted import Hosted
from openglm.serve.runner import Place
from openglm.serve.writing import Part, Usage, Writing


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatCall:
    """What a client asks for.

    Args:
        messages: as the client wrote them; see `conversation`.
        tools: functions that may be called.
        tool_choice: "auto", "none", "required", or the name of the one to be called.
        schema: what the answer must be as JSON, if it must.
        sampling: settings that differ from the model's defaults; see `SamplingParams`.
        place: whose call it is.
    """

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str = "auto"
    schema: Mapping[str, Any] | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    place: Place = field(default_factory=Place)


@dataclass(frozen=True, slots=True)
class ChatPiece:
    """A piece of one answer.

    Args:
        index: of the answer.
        pieces: text and calls of tools that are certain now; may be empty.
        logprobs: of the tokens since the last piece, if they were asked for.
        finish_reason: at the end, else None: "tool_calls", or that of the request.
    """

    index: int
    pieces: Sequence[ReplyPiece]
    logprobs: tuple[TokenLogprob, ...]
    finish_reason: str | None


class ChatAnswer:
    """The answers to one call.

    Args:
        hosted: the model.
        writing: that writes them.
        tools: names that a call may have.
        opening: what each answer begins with.
    """

    def __init__(
        self, hosted: Hosted, writing: Writing, tools: Sequence[str], opening: str
    ) -> None:
        self.writing = writing
        self.readers = [ReplyReader(hosted.kind, tools) for _ in writing.asked]
        self.opening = opening

    @property
    def usage(self) -> Usage:
        """Tokens so far."""
        return self.writing.usage

    @property
    def prompt(self) -> Prompt:
        """What is read."""
        return self.writing.asked[0].prompt

    async def pieces(self) -> AsyncGenerator[ChatPiece, None]:
        """Pieces of all answers in the order in which they come."""
        for index, reader in enumerate(self.readers):
            if begun := reader.push(self.opening):
                yield ChatPiece(index, begun, (), None)
        async with aclosing(self.writing.parts()) as parts:
            async for part in parts:
                yield self._read(part)

    def _read(self, part: Part) -> ChatPiece:
        reader = self.readers[part.index]
        pieces = reader.push(part.text)
        reason = part.finish_reason
        if reason is not None:
            pieces += reader.finish()
            if reason == "stop" and reader.num_calls:
                reason = "tool_calls"
        return ChatPiece(part.index, pieces, part.logprobs, reason)


async def answer(
    hosted: Hosted, call: ChatCall, allow: Callable[[Writing], object] = lambda writing: None
) -> ChatAnswer:
    """Checks a call, and prepares its answers.

    Args:
        hosted: the model.
        call: what is asked for.
        allow: raises unless the model may choose a tool now, which it does before it answers.

    Raises:
        RequestError: it cannot be honoured.
    """
    if not hosted.can_chat:
        raise RequestError(
            f"{hosted.name} was not trained to chat",
            hint="it continues texts at /v1/completions, or fills blanks at /v1/fill",
        )
    tools = [] if call.tool_choice == "none" else list(call.tools)
    if tools and not hosted.can_call_tools:
        raise RequestError(
            f"{hosted.name} was not trained to call tools", hint="ChatGLM3 and GLM-4 were"
        )
    names = [str(tool["name"]) for tool in tools]
    messages = conversation(call.messages, tools, hosted.kind)
    sampling = dict(call.sampling)
    opening = "\n" * hosted.can_call_tools if call.schema is not None else ""
    used = Usage()
    if call.schema is not None:
        sampling["json_schema"] = call.schema
    if call.tool_choice not in ("auto", "none"):
        name = call.tool_choice
        if name == "required":
            name, used = await _chosen(hosted, call, messages, names, allow)
        opening, rules = _call_of(name, tools, hosted.kind)
        sampling |= rules
    writing = await hosted.prepare([messages], "chat", sampling, place=call.place, opening=opening)
    writing.usage.add(used)
    return ChatAnswer(hosted, writing, names, opening)


async def _chosen(
    hosted: Hosted,
    call: ChatCall,
    messages: list[Any],
    names: Sequence[str],
    allow: Callable[[Writing], object],
) -> tuple[str, Usage]:
    """The tool that the model calls when it must call one, and what choosing it took."""
    if len(names) == 1:
        return names[0], Usage()
    if not names:
        raise RequestError("tool_choice is 'required', but there are no tools")
    rules = {name: call.sampling[name] for name in ("seed", "temperature") if name in call.sampling}
    rules |= {"choice": list(names)}
    writing = await hosted.prepare([messages], "chat", rules, place=call.place)
    allow(writing)
    texts, reason = [], None
    async with aclosing(writing.parts()) as parts:
        async for part in parts:
            texts.append(part.text)
            reason = part.finish_reason
    if reason != "stop":
        raise ServeError("timeout", f"no tool was chosen in time ({reason})")
    return "".join(texts), writing.usage


def _call_of(
    name: str, tools: Sequence[Mapping[str, Any]], kind: str
) -> tuple[str, dict[str, Any]]:
    """How an answer begins that calls a tool, and what the rest must match."""
    found = next((tool for tool in tools if tool["name"] == name), None)
    if found is None:
        raise RequestError(
            f"tool_choice names {name!r}, which is not among the tools",
            hint=", ".join(str(tool["name"]) for tool in tools) or "there are none",
        )
    if kind == "chatglm3":  # writes its calls in Python, for which there is no schema
        return f"{name}\n```python\ntool_call(", {}
    return f"{name}\n", {"json_schema": json.dumps(found.get("parameters") or {"type": "object"})}
