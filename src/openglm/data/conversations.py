"""Conversations and pairs to fine-tune on, from the shapes that people have them in.

    messages    {"messages": [{"role": "user", "content": ...}, ...], "tools": [...]}     OpenAI
    sharegpt    {"conversations": [{"from": "human", "value": ...}, ...], "system": ...}
    alpaca      {"instruction": ..., "input": ..., "output": ..., "history": [[q, a], ...]}
    columns     one column each for prompt and answer, perhaps one for the history    ADGEN

JSON lines, plain or compressed. Everything is checked before anything is trained, and what is wrong
is told with the numbers of the lines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from openglm.chat.messages import Message, as_messages
from openglm.data.sources import read_fields
from openglm.errors import ConfigError, DataError, RequestError

Shape = Literal["auto", "messages", "sharegpt", "alpaca", "columns"]
SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "observation",
    "tool": "observation",
}
MOST_PROBLEMS = 20
"""Told at once; there may be one for each line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationsConfig:
    """Where conversations come from.

    Args:
        path: a file of JSON lines, relative to `data.folder`.
        shape: of its lines; auto = by the keys of the first one.
        prompt: with the shape "columns": the column that is asked.
        answer: likewise: that is answered.
        history: likewise: earlier questions and answers, [[q, a], ...]; "" = there are none.
    """

    path: str
    shape: Shape = "auto"
    prompt: str = ""
    answer: str = ""
    history: str = ""

    def __post_init__(self) -> None:
        if (self.shape == "columns") != bool(self.prompt and self.answer):
            raise ConfigError(
                f"{self.path}: prompt and answer name columns of the shape 'columns', which needs "
                f"both: shape={self.shape!r}, prompt={self.prompt!r}, answer={self.answer!r}"
            )


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages, of which one of the assistant's at least is to be learned.

    Args:
        messages: in turn.
        line: where they stand in the file, from 1.
    """

    messages: list[Message]
    line: int


def read_conversations(config: ConversationsConfig, folder: Path) -> list[Conversation]:
    """All conversations of a file.

    Raises:
        DataError: no file, nothing in it, or lines that are no conversations: up to 20 are named.
    """
    path = folder / config.path
    if not path.is_file():
        raise DataError(f"there is no file {path}", hint="check data.folder and path")
    shape, found, problems = config.shape, [], []
    for line, fields in read_fields(path):
        if shape == "auto":
            shape = _guess(path, fields)
        try:
            messages = _read(fields, shape, config)
            _check(messages)
        except (RequestError, DataError) as error:
            problems.append(f"line {line}: {error}")
            continue
        found.append(Conversation(messages, line))
    if problems:
        shown = "\n".join(problems[:MOST_PROBLEMS])
        raise DataError(
            f"{path}: {len(problems)} of {len(problems) + len(found)} lines cannot be learned "
            f"from:\n{shown}",
            hint=f"they were read as {shape!r}",
        )
    if not found:
        raise DataError(f"{path} holds no conversations")
    return found


def _guess(path: Path, fields: Mapping[str, Any]) -> Shape:
    if "messages" in fields:
        return "messages"
    if "conversations" in fields:
        return "sharegpt"
    if "instruction" in fields:
        return "alpaca"
    raise DataError(
        f"{path} has lines with the keys {', '.join(map(repr, fields))}: no shape known here",
        hint="known are messages, conversations and instruction; else name the columns: "
        "shape = 'columns', prompt = ..., answer = ...",
    )


def _read(fields: Mapping[str, Any], shape: Shape, config: ConversationsConfig) -> list[Message]:
    if shape == "columns":
        return _rounds(fields, config.prompt, config.answer, config.history)
    return READERS[shape](fields)


def _openai(fields: Mapping[str, Any]) -> list[Message]:
    messages = as_messages(fields.get("messages", []), asks=False)
    tools = fields.get("tools")
    if not tools:
        return messages
    told = {"role": "system", "content": "", "tools": tools}
    if messages[0].role == "system":
        first = messages.pop(0)
        if first.tools is not None:
            raise DataError("tools stand beside the messages, and in the first of them")
        told["content"] = first.content
    return [*as_messages([told], asks=False), *messages]


def _sharegpt(fields: Mapping[str, Any]) -> list[Message]:
    turns = fields.get("conversations")
    if not isinstance(turns, list):
        raise DataError(f"conversations={turns!r} must be a list")
    if fields.get("tools"):
        raise DataError("tools are read beside messages in the shape 'messages' only")
    if turns and isinstance(turns[0], Mapping) and "role" in turns[0]:  # ChatGLM3's own recipe
        return as_messages(turns, asks=False)
    made = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    for number, turn in enumerate(turns):
        role = turn.get("from") if isinstance(turn, Mapping) else None
        if not isinstance(role, str) or role not in SHAREGPT_ROLES:
            raise DataError(
                f"turn {number} is {turn!r}; it needs from (one of {', '.join(SHAREGPT_ROLES)}) "
                "and value"
            )
        made.append({"role": SHAREGPT_ROLES[role], "content": turn.get("value")})
    return as_messages(made, asks=False)


def _alpaca(fields: Mapping[str, Any]) -> list[Message]:
    asked = [fields.get(name) for name in ("instruction", "input") if fields.get(name)]
    if not all(isinstance(text, str) for text in asked):
        raise DataError(f"instruction and input must be texts: {asked!r}")
    joined = dict(fields) | {"instruction": "\n".join(map(str, asked))}
    return _rounds(joined, "instruction", "output", "history")


READERS: dict[str, Callable[[Mapping[str, Any]], list[Message]]] = {
    "messages": _openai,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
}


def _rounds(fields: Mapping[str, Any], asked: str, answer: str, history: str) -> list[Message]:
    for name in (asked, answer):
        if not isinstance(fields.get(name), str):
            raise DataError(f"{name!r} is {fields.get(name)!r}; it must be a text")
    past = (fields.get(history) or []) if history else []
    if not isinstance(past, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in past
    ):
        raise DataError(f"{history!r} must be a list of [question, answer]: {past!r}")
    made = [{"role": "system", "content": fields["system"]}] if fields.get("system") else []
    for question, reply in [*past, [fields[asked], fields[answer]]]:
        made += [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
    return as_messages(made, asks=False)


def _check(messages: list[Message]) -> None:
    """Something is there to be learned, and it is text."""
    answers = [message for message in messages if message.role == "assistant"]
    if not answers:
        raise DataError("it has no answer of the assistant")
    for message in answers:
        if not message.content.strip() and not message.metadata:
            raise DataError("an answer of the assistant is empty")
    for message in messages:
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            raise DataError("it has a lone surrogate, which is no Unicode text") from error


def answers_of(messages: list[Message]) -> Iterator[int]:
    """Places of the assistant's messages."""
    return (i for i, message in enumerate(messages) if message.role == "assistant")
