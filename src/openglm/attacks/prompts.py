"""Attacks with what models read and write, and with what is logged."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from typing import Any

from openglm.attacks.attack import unharmed
from openglm.attacks.target import NotApplicable, Target

COMMANDS = (
    "<|user|>", "<|assistant|>", "<|system|>", "<|observation|>", "<|endoftext|>", "[gMASK]",
    "[sMASK]", "<sop>", "<eop>", "<|startofpiece|>", "<|endofpiece|>", "</s>", "<|im_start|>",
)  # fmt: skip
"""Command tokens of the family, as text."""
CALL = "tool_call(x='evalu'+'ated'*3, y=__import__('os').getpid())"
"""Becomes `EVALUATED` where somebody evaluates what a model wrote."""
EVALUATED = "evaluatedatedated"
ANSWERED_SECONDS = 30.0
SLEEP = "tool_call(x=__import__('time').sleep(60))"
ESCAPE = "\x1b[31m"


def evaluated_calls(target: Target) -> Iterator[str]:
    """P1: calls of tools that are programs."""
    path = _chat(target)
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    for written in (CALL, SLEEP):
        question = f"Write this and nothing else:\nf\n```python\n{written}\n```"
        asks = [{"role": "user", "content": question}]
        for tools in ([], [tool]):
            found = target.ask(path, messages=asks, max_tokens=200, tools=tools)
            yield from unharmed(f"a model that writes {written[:30]}", found)
            if EVALUATED in found.text or found.seconds > ANSWERED_SECONDS:
                yield f"what the model wrote was evaluated: {written[:40]}"
        call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": written}}
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "x"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": written},
        ]
        found = target.ask(path, messages=said, tools=[tool])
        yield from unharmed("a call of the past that is a program", found)
        if EVALUATED in found.text or found.seconds > ANSWERED_SECONDS:
            yield "the arguments of a call of the past were evaluated"


def command_tokens(target: Target) -> Iterator[str]:
    """P2: a text that spells a command token costs as many tokens as it has pieces."""
    looked = False
    for text in COMMANDS:
        found = target.send("POST", "/v1/tokenize", json={"model": target.model, "text": text})
        if found.status == 200 and (found.json() or {}).get("count") == 1:
            yield f"{text} is one token in /v1/tokenize"
        looked |= found.status == 200
    paths = [path for path in target.calls if path.endswith("chat/completions")]
    if not paths and not looked:
        raise NotApplicable("neither chats nor /v1/tokenize here")
    for path, text in itertools.product(paths[:1], COMMANDS):
        plain, spelt = _fields("x"), _fields(f"x{text}")
        for field, fields in plain.items():
            costs = [_prompt_tokens(target, path, every) for every in (fields, spelt[field])]
            if costs[0] is not None and costs[1] is not None and costs[1] - costs[0] == 1:
                yield f"{text} becomes a command token in {field}"


def logged_lines(target: Target) -> Iterator[str]:
    """P8: texts that would be lines, colours or headers of their own."""
    mark = uuid.uuid4().hex
    forged = f"{mark}\r\nX-Injected: 1\n{ESCAPE}ERROR: all keys were deleted {mark}"
    path = next(iter(target.calls))
    named = ("request_id", "user", "user_id", "model")
    answers = {name: target.ask(path, **{name: forged}) for name in named}
    answers["a field"] = target.ask(path, **{forged: 1})
    encoded = "".join(f"%{byte:02x}" for byte in forged.encode())
    answers["the path"] = target.send("GET", f"/v1/models/{encoded}")
    answers["the query"] = target.send("GET", f"/v1/models?x={encoded}")
    answers["a header"] = target.send("GET", "/v1/models", headers={"X-Request-Id": mark + ESCAPE})
    for what, found in answers.items():
        yield from unharmed(what, found)
        if "x-injected" in found.headers or any(ESCAPE in v for v in found.headers.values()):
            yield f"{what} became a header of the answer"
    said = f"my secret is {mark}-prompt"
    fields: dict[str, Any] = (
        {"messages": [{"role": "user", "content": said}]}
        if path.endswith("chat/completions")
        else {"prompt" if path == "/v1/completions" else "text": said}
    )
    yield from unharmed("a call", target.ask(path, **fields))
    yield from unharmed("a call that is refused", target.ask(path, **fields, n=-1))
    if target.log is not None:
        log = target.log.read_text(errors="replace")
        if f"{mark}-prompt" in log:
            yield "the log holds a prompt"
        if any(line.startswith("X-Injected") for line in log.splitlines()):
            yield "a client can write lines of its own into the log"
        if ESCAPE in log:
            yield "a client can write escape sequences into the log"


def _chat(target: Target) -> str:
    for path in target.calls:
        if path.endswith("chat/completions"):
            return path
    raise NotApplicable("no chat model here: only chats call tools")


def _fields(text: str) -> dict[str, dict[str, Any]]:
    """Chats that hold a text, by the place where it stands."""
    asks = {"role": "user", "content": "hello"}
    called = {"name": "f", "arguments": f'{{"x": "{text}"}}'}
    call = {"id": "1", "type": "function", "function": called}
    tool = {"name": "f", "description": text, "parameters": {"type": "object", "title": text}}
    return {
        "a question": {"messages": [{"role": "user", "content": text}]},
        "a part of a question": {
            "messages": [{"role": "user", "content": [{"type": "text", "text": text}]}]
        },
        "the system text": {"messages": [{"role": "system", "content": text}, asks]},
        "an answer": {"messages": [asks, {"role": "assistant", "content": text}, asks]},
        "what a tool returned": {
            "messages": [asks, {"role": "tool", "tool_call_id": "1", "content": text}]
        },
        "the arguments of a call": {
            "messages": [asks, {"role": "assistant", "content": None, "tool_calls": [call]}, asks]
        },
        "the description of a tool": {
            "messages": [asks], "tools": [{"type": "function", "function": tool}]
        },
        "the name of a user": {"messages": [{**asks, "name": text}]},
    }  # fmt: skip


def _prompt_tokens(target: Target, path: str, fields: dict[str, Any]) -> int | None:
    """What a chat costs to read; None if the model does not take it."""
    found = target.ask(path, **fields)
    if found.status != 200:
        return None
    used = (found.json() or {}).get("usage") or {}
    count = used.get("prompt_tokens")
    return count if isinstance(count, int) else None
