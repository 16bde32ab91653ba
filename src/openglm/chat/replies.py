"""From the text that a model wrote to its answer, by the rules of its official code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openglm.chat.messages import Message
from openglm.chat.tools import parse_json_call, parse_tool_call
from openglm.errors import RequestError

TRAINING_TIME = ("[[训练时间]]", "2023年")
PUNCTUATION = str.maketrans(",!:;?", "，！：；？")
_HAN = "\u4e00-\u9fff"
_BESIDE_HAN = re.compile(f"(?<=[{_HAN}])[,!:;?]|[,!:;?](?=[{_HAN}])")


@dataclass(frozen=True, slots=True)
class Reply:
    """What the model answered.

    Args:
        content: the answer's text, or what it wrote for a tool.
        messages: the answer as messages to append to the conversation; ChatGLM3 may think aloud
            before it calls a tool.
        tool: name of the tool that it calls, None for an answer.
        arguments: of the call; None without one, or if it is no readable call.
    """

    content: str
    messages: tuple[Message, ...]
    tool: str | None = None
    arguments: dict[str, Any] | None = None


def chatglm(text: str, asked: Sequence[Message]) -> Reply:
    """ChatGLM-6B: punctuation beside a Chinese character becomes full width."""
    text = widened(text.strip().replace(*TRAINING_TIME))
    return Reply(text, (Message("assistant", text),))


def widened(text: str) -> str:
    """Punctuation beside a Chinese character in full width."""
    return _BESIDE_HAN.sub(lambda match: match.group().translate(PUNCTUATION), text)


def chatglm2(text: str, asked: Sequence[Message]) -> Reply:
    """ChatGLM2-6B."""
    text = text.strip().replace(*TRAINING_TIME)
    return Reply(text, (Message("assistant", text),))


def chatglm3(text: str, asked: Sequence[Message]) -> Reply:
    """ChatGLM3: parts behind `<|assistant|>`, each metadata, newline and content.

    With tools in the system message, the content of a part with metadata is a call between two
    fence lines; otherwise it is passed on as it is (code for an interpreter).
    """
    return _with_tools(text, asked, fenced_call)


def glm4(text: str, asked: Sequence[Message]) -> Reply:
    """GLM-4: the same, but a call's content is the JSON of its arguments."""
    return _with_tools(text, asked, parse_json_call)


def _with_tools(
    text: str, asked: Sequence[Message], parse: Callable[[str], dict[str, Any]]
) -> Reply:
    messages = [_part(part) for part in text.split("<|assistant|>")]
    last = messages[-1]
    tool = last.metadata.strip()
    if not tool:
        content = last.content.replace(*TRAINING_TIME)
        return Reply(content, tuple(messages))
    arguments = None
    if any(message.tools is not None for message in asked):
        try:
            arguments = parse(last.content)
        except RequestError:
            arguments = None  # the caller sees a tool without arguments, and the text
    return Reply(last.content, tuple(messages), tool, arguments)


def fenced_call(content: str) -> dict[str, Any]:
    """The call between the first line and the last, which fence it."""
    return parse_tool_call("\n".join(content.split("\n")[1:-1]))


def _part(text: str) -> Message:
    metadata, newline, content = text.partition("\n")
    if not newline:
        metadata, content = "", text
    if not metadata.strip():
        content = content.strip()
    return Message("assistant", content, metadata)
