"""How each generation writes a conversation as ids, as its official code does.

Roles are single tokens that no text can spell. ChatGLM3 and GLM-4 encode every part of a message
by itself; encoding the whole string at once gives other ids.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from openglm.chat.messages import Message
from openglm.errors import RequestError
from openglm.tokenizers import Tokenizer


def chatglm(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """ChatGLM-6B: rounds count from 0; a first question stands alone; `[gMASK] sop` at the end."""
    rounds, query = _rounds(messages)
    text = query
    if rounds:
        past = (f"[Round {i}]\n问：{q}\n答：{a}\n" for i, (q, a) in enumerate(rounds))
        text = "".join(past) + f"[Round {len(rounds)}]\n问：{query}\n答："
    special = tokenizer.special
    return [*tokenizer.encode(text), special.gmask_id, special.sop_id]


def chatglm2(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """ChatGLM2-6B: rounds count from 1, always written; `[gMASK] sop` at the start."""
    rounds, query = _rounds(messages)
    past = (f"[Round {i}]\n\n问：{q}\n\n答：{a}\n\n" for i, (q, a) in enumerate(rounds, 1))
    text = "".join(past) + f"[Round {len(rounds) + 1}]\n\n问：{query}\n\n答："
    special = tokenizer.special
    return [special.gmask_id, special.sop_id, *tokenizer.encode(text)]


GLM4_SYSTEM = (
    "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，"
    "你的任务是针对用户的问题和要求提供适当的答复和支持。"
)
"""What stands before the tools, in the published chat template of glm-4-9b-chat."""
GLM4_TOOLS = "\n\n# 可用工具"
GLM4_AS_JSON = "在调用上述函数时，请使用 Json 格式表示调用的参数。"


def glm4(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """GLM-4: as ChatGLM3, but tools are a system message of their own, before that of the user."""
    told: list[Message] = []
    for message in messages:
        if message.tools is not None:
            described = "".join(_glm4_tool(tool) for tool in message.tools)
            told.append(Message("system", GLM4_SYSTEM + GLM4_TOOLS + described))
        if message.tools is None or message.content:
            told.append(Message(message.role, message.content, message.metadata))
    return with_roles(tokenizer, told)


def _glm4_tool(tool: Any) -> str:
    """One tool: `{"type": "function", "function": {...}}` as in the OpenAI API, or its inside."""
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    is_function = isinstance(tool, Mapping) and tool.get("type", "function") == "function"
    if not is_function or not isinstance(function, Mapping) or "name" not in function:
        raise RequestError(
            f"the tool {tool!r} is no function with a name",
            hint='GLM-4 takes {"type": "function", "function": {"name": ..., "parameters": ...}}',
        )
    described = json.dumps(function, indent=4, ensure_ascii=False)
    return f"\n\n## {function['name']}\n\n{described}\n{GLM4_AS_JSON}"


def with_roles(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """ChatGLM3: `[gMASK] sop`, then role, metadata and newline, content per message."""
    special = tokenizer.special
    ids = [special.gmask_id, special.sop_id]
    for message in messages:
        content = message.content
        if message.tools is not None:
            tools = json.dumps(list(message.tools), indent=4, ensure_ascii=False)
            content = f"{content}\n{tools}"
        ids.append(special.get(message.role).id)
        ids += answer_of_role(tokenizer, Message(message.role, content, message.metadata))
    return [*ids, special.get("assistant").id]


def answer_of_role(tokenizer: Tokenizer, message: Message) -> list[int]:
    """What stands behind the token of a role: metadata and newline, then the content."""
    return [*tokenizer.encode(f"{message.metadata}\n"), *tokenizer.encode(message.content)]


def plain_answer(tokenizer: Tokenizer, message: Message) -> list[int]:
    """An answer of a model without roles."""
    if message.metadata:
        raise RequestError("this model does not know tools", hint="ChatGLM3 and GLM-4 do")
    return tokenizer.encode(message.content)


def _rounds(messages: Sequence[Message]) -> tuple[list[tuple[str, str]], str]:
    """Past (question, answer) pairs, and the new question; a system text goes before the first."""
    if any(message.tools is not None or message.metadata for message in messages):
        raise RequestError("this model does not know tools", hint="ChatGLM3 and GLM-4 do")
    turns = list(messages)
    system = turns.pop(0).content if turns[0].role == "system" else ""
    for number, message in enumerate(turns):
        wanted = "assistant" if number % 2 else "user"
        if message.role != wanted:
            raise RequestError(
                f"this model knows questions and answers in turn; message {number} is of the role "
                f"{message.role!r}, not {wanted!r}",
                hint="system first or not at all",
            )
    if not turns:
        raise RequestError("there is no user message")
    texts = [system + turns[0].content, *(message.content for message in turns[1:])]
    return list(zip(texts[0:-1:2], texts[1::2], strict=True)), texts[-1]
