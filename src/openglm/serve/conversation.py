"""Conversations as HTTP clients write them, to those that models know."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openglm.chat import Message
from openglm.errors import RequestError
from openglm.serve.fields import unread

ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "observation",
    "function": "observation",
    "observation": "observation",
}
"""Of OpenAI, BigModel and ChatGLM3 -> ours."""
_FUNCTION = {
    "type": "object",
    "required": ["name", "arguments"],
    "properties": {
        "name": {"type": "string"},
        "arguments": {"type": "string", "description": "JSON of an object."},
    },
}
_PART = {
    "type": "object",
    "required": ["type", "text"],
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
}
_NO_MATTER = {"description": "Not read: the order says which call is meant."}
_CALL = {
    "type": "object",
    "required": ["function"],
    "properties": {"function": _FUNCTION} | dict.fromkeys(("id", "type", "index"), _NO_MATTER),
}
MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": [*ROLES]},
        "content": {
            "anyOf": [{"type": "string"}, {"type": "array", "items": _PART}, {"type": "null"}]
        },
        "tool_calls": {"anyOf": [{"type": "array", "items": _CALL}, {"type": "null"}]},
        "function_call": {"anyOf": [_FUNCTION, {"type": "null"}]},
        "tool_call_id": _NO_MATTER,
    },
}
"""A message as clients write it, in JSON schema: what `conversation` reads."""
CHATGLM3_TOOLS = (
    "Answer the following questions as best as you can. You have access to the following tools:"
)
"""What stands before the tools in ChatGLM3's documentation, and in its training."""


def conversation(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], kind: str
) -> list[Message]:
    """Our messages; instructions at the very end are taken for the user's words.

    Args:
        messages: with role, content (text, or parts of type text), and tool_calls.
        tools: functions with name, description and parameters.
        kind: of the tokenizer.

    Raises:
        RequestError: a message that no model here understands; it names the index.
    """
    found: list[Message] = []
    for index, message in enumerate(messages):
        found += _messages(message, index, kind)
    if found and found[-1].role == "system":  # OpenAI's answer these; ours only answer somebody
        found[-1] = Message("user", found[-1].content)
    if not tools:
        return found
    described = tuple(tools)
    if found and found[0].role == "system":
        return [Message("system", found[0].content, tools=described), *found[1:]]
    return [Message("system", CHATGLM3_TOOLS * (kind == "chatglm3"), tools=described), *found]


def unread_of(message: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields that `conversation` does not read; those inside others have dots."""
    is_result = ROLES.get(str(message.get("role"))) == "observation"
    for name in unread(message, MESSAGE):
        if not (is_result and name == "name"):  # of the function, which results need not tell
            yield name


def _messages(message: Mapping[str, Any], index: int, kind: str) -> list[Message]:
    """One message as ours; a call of a tool is a message of its own."""
    role = ROLES.get(str(message.get("role")))
    if role is None:
        raise RequestError(
            f"messages[{index}] has the role {message.get('role')!r}", hint=", ".join(ROLES)
        )
    text = _text(message.get("content"), index)
    calls = _calls(message, index)
    if not calls:
        return [Message(role, text)]
    if role != "assistant":
        raise RequestError(f"messages[{index}]: only an assistant's message calls tools")
    spoken = [Message(role, text)] if text else []
    return [
        *spoken,
        *(Message(role, _arguments(call, index, kind), call["name"]) for call in calls),
    ]


def _text(content: object, index: int) -> str:
    """Text, parts of text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RequestError(f"messages[{index}].content must be text or a list of parts")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(
                f"messages[{index}].content has a part of type {kind!r}; only text is read",
                hint="leave images, audio and files out",
            )
        texts.append(part["text"])
    return "".join(texts)


def _calls(message: Mapping[str, Any], index: int) -> list[Mapping[str, str]]:
    """Functions that a message calls, each with name and arguments."""
    made = message.get("tool_calls") or []
    if not isinstance(made, list):
        raise RequestError(f"messages[{index}].tool_calls must be a list")
    functions = [call.get("function") if isinstance(call, Mapping) else None for call in made]
    if old := message.get("function_call"):
        functions.append(old)
    found = [function for function in functions if isinstance(function, Mapping)]
    texts = [call.get(name) for call in found for name in ("name", "arguments")]
    if len(found) < len(functions) or not all(isinstance(text, str) for text in texts):
        raise RequestError(
            f"messages[{index}]: a call needs a function with name and arguments as texts"
        )
    return found


def _arguments(call: Mapping[str, Any], index: int, kind: str) -> str:
    """A call's arguments as the model wrote them."""
    if kind != "chatglm3":
        return str(call["arguments"])
    try:
        arguments = json.loads(call["arguments"])
        written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    except (ValueError, AttributeError, RecursionError) as error:
        raise RequestError(
            f"messages[{index}]: the arguments of {call['name']} are no JSON object: {error}"
        ) from error
    return f"```python\ntool_call({written})\n```"
