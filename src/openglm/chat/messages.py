"""`Message`: one turn of a conversation, as in the OpenAI API with ChatGLM3's metadata."""

from __future__ import annotations

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


def as_messages(messages: Sequence[Message | Mapping[str, Any]] | str) -> list[Message]:
    """Checks a conversation: dictionaries with `role` and `content`, or one user's text.

    Raises:
        RequestError: empty, an unknown role or key, a value of a wrong type, or the last message
            asks for no answer.
    """
    if isinstance(messages, str):
        return [Message("user", messages)]
    found = [_message(message, number) for number, message in enumerate(messages)]
    if not found:
        raise RequestError("there are no messages", hint="give at least one user message")
    if found[-1].role not in ("user", "observation"):
        raise RequestError(
            f"the last message is of the role {found[-1].role!r}, which asks for no answer",
            hint="end with a user message, or with the observation of a tool",
        )
    return found


def _message(message: Message | Mapping[str, Any], number: int) -> Message:
    if isinstance(message, Message):
        message = {key: getattr(message, key) for key in KEYS}
    if not isinstance(message, Mapping):
        raise RequestError(f"message {number} is {message!r}, not a dictionary")
    for key in message:
        if key not in KEYS:
            raise RequestError(f"message {number} has the key {key!r}", hint=suggest(key, KEYS))
    role, content = message.get("role"), message.get("content")
    metadata, tools = message.get("metadata") or "", message.get("tools")
    if role not in ROLES:
        raise RequestError(f"message {number} has the role {role!r}", hint=", ".join(ROLES))
    for name, value in (("content", content), ("metadata", metadata)):
        if not isinstance(value, str):
            raise RequestError(f"message {number}: {name}={value!r} must be text")
    if tools is not None and not isinstance(tools, list | tuple):
        raise RequestError(f"message {number}: tools={tools!r} must be a list")
    return Message(role, str(content), metadata, None if tools is None else tuple(tools))
