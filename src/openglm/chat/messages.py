"""`Message`: one turn of a conversation, as in the OpenAI API with ChatGLM3's metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openglm.errors import RequestError, suggest

ROLES = ("system", "user", "assistant", "observation")
KEYS = ("role", "content", "metadata", "tools")


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        role: system, user, assistant, or observation (what a tool returned).
        content: the text.
        metadata: assistant only: the tool that is called, "" for an answer.
        tools: system only: descriptions of the tools at hand, written behind the content.
    """

    role: str
    content: str
    metadata: str = ""
    tools: tuple[Any, ...] | None = None


def as_messages(
    messages: Sequence[Message | Mapping[str, Any]] | str, *, asks: bool = True
) -> list[Message]:
    """Checks a conversation: dictionaries with `role` and `content`, or one user's text.

    Args:
        messages: the conversation.
        asks: whether the last message must ask for an answer; a conversation to train on may end
            with one.

    Raises:
        RequestError: empty, an unknown role or key, a value of a wrong type, or the last message
            asks for no answer.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    if not isinstance(messages, Sequence):
        raise RequestError(f"messages={messages!r} must be a list of messages, or one text")
    turns: Sequence[Any] = messages
    found = [_message(message, number) for number, message in enumerate(turns)]
    if not found:
        raise RequestError("there are no messages", hint="give at least one user message")
    if asks and found[-1].role not in ("user", "observation"):
        raise RequestError(
            f"the last message is of the role {found[-1].role!r}, which asks for no answer",
            hint="end with a user message, or with the observation of a tool",
        )
    return found


def _message(message: object, number: int) -> Message:
    if isinstance(message, Message):
        message = {key: getattr(message, key) for key in KEYS}
    if not isinstance(message, Mapping):
        raise RequestError(f"message {number} is {message!r}, not a dictionary")
    for key in message:
        if key not in KEYS:
            hint = suggest(str(key), KEYS)
            raise RequestError(f"message {number} has the key {key!r}", hint=hint)
    role, content = message.get("role"), message.get("content")
    metadata, tools = message.get("metadata") or "", message.get("tools")
    if role not in ROLES:
        raise RequestError(f"message {number} has the role {role!r}", hint=", ".join(ROLES))
    for name, value in (("content", content), ("metadata", metadata)):
        if not isinstance(value, str):
            raise RequestError(f"message {number}: {name}={value!r} must be text")
    if metadata and role != "assistant":
        raise RequestError(f"message {number}: only an assistant's message has metadata")
    if tools is not None:
        _check_tools(tools, role, number)
    return Message(role, str(content), metadata, None if tools is None else tuple(tools))


def _check_tools(tools: object, role: object, number: int) -> None:
    if not isinstance(tools, list | tuple):
        raise RequestError(f"message {number}: tools={tools!r} must be a list")
    if role != "system":
        raise RequestError(
            f"message {number}: tools belong to the system message, not to a {role} message"
        )
    try:
        json.dumps(tools, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise RequestError(
            f"message {number}: the tools cannot be written as JSON: {error}"
        ) from error
