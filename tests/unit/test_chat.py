"""Conversations are checked, and tool calls are read without running anything."""

from __future__ import annotations

import json

import pytest

from helpers_data import RANKED, write_ranks
from openglm.chat import Message, as_messages, prompt_ids, read_reply
from openglm.chat.tools import parse_tool_call
from openglm.errors import RequestError
from openglm.tokenizers.glm4 import GLM4Tokenizer


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("tool_call()", {}),
        ("tool_call(symbol='10111')", {"symbol": "10111"}),
        (
            ' tool_call(a=-1.5, b=True, c=None, d=[1, (2, 3)], e={"x": {}}) ',
            {"a": -1.5, "b": True, "c": None, "d": [1, [2, 3]], "e": {"x": {}}},
        ),
        ("tool_call(\n  a='第一',\n  b=2,\n)", {"a": "第一", "b": 2}),
    ],
)
def test_a_tool_call_is_read(text, arguments):
    """Tools get other arguments than the model wrote."""
    assert parse_tool_call(text) == arguments


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('touch /tmp/owned')",
        "tool_call(a=__import__('os').getcwd())",
        "tool_call(a=(lambda: 1)())",
        "tool_call(a=[x for x in (1,)])",
        "tool_call(a=f'{1}')",
        "tool_call(a=1 + 1)",
        "tool_call(a=open)",
        "tool_call(a=b'x')",
        "tool_call(a=...)",
        "tool_call(a={**{}})",
        "tool_call(a={[]: 1})",
        "tool_call(**{'a': 1})",
        "tool_call(1)",
        "tool_call(a=1)(b=2)",
        "eval(a=1)",
        "x.tool_call(a=1)",
        "tool_call(a=1); tool_call(b=1)",
        "tool_call(a=1",
        "tool_call(a=\x00)",
        "",
        "tool_call(a=" + "+".join("1" * 600) + ")",
        "tool_call(a=x" + ".b" * 3000 + ")",
        "tool_call(a=0x" + "f" * 20000 + ")",
        "tool_call(a=1e999)",
        "tool_call(a=9223372036854775808)",
        "tool_call(a=" + "[" * 40 + "]" * 40 + ")",
        "tool_call(a=" + "[" * 30000,
        "tool_call(a='" + "x" * 70000 + "')",
    ],
)
def test_whatever_is_no_literal_is_refused(text):
    """Text that a model was talked into writing runs as a program."""
    with pytest.raises(RequestError):
        parse_tool_call(text)


def test_an_unreadable_call_keeps_its_text():
    """A broken call ends the conversation with an error, or is lost."""
    asked = [Message("system", "x", tools=({"name": "t"},)), Message("user", "q")]
    reply = read_reply("chatglm3", "t\n```python\ntool_call(a=\n```", asked)
    assert (reply.tool, reply.arguments) == ("t", None)
    assert "tool_call(a=" in reply.content


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "there are no messages"),
        ([{"role": "user"}], "content=None must be text"),
        ([{"role": "robot", "content": "x"}], "role 'robot'"),
        ([{"role": "user", "content": "x", "nmae": "y"}], "key 'nmae'"),
        ([{"role": "user", "content": ["x"]}], "must be text"),
        (["x"], "message 0 is 'x'"),
        ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "asks for no"),
        ([{"role": "system", "content": "x", "tools": 3}], "tools=3"),
        ([{"role": "system", "content": "x", "tools": [object()]}], "cannot be written as JSON"),
        ([{"role": "user", "content": "x", "tools": []}], "tools belong to the system message"),
        ([{"role": "user", "content": "x", "metadata": "t"}], "only an assistant's message"),
        ([{1: 2}], "key 1"),
        (None, "messages=None must be a list"),
    ],
)
def test_a_conversation_that_cannot_be(messages, said):
    """A slip in a request is answered with nonsense instead of a message."""
    with pytest.raises(RequestError, match=said):
        as_messages(messages)


@pytest.mark.parametrize("roles", ["system", "user user", "assistant user", "user observation"])
def test_rounds_need_questions_and_answers_in_turn(roles, gpt2, monkeypatch):
    """ChatGLM2 is shown a conversation in which a turn is missing."""
    monkeypatch.setattr(gpt2, "kind", "chatglm2")
    messages = [Message(role, "x") for role in roles.split()]
    with pytest.raises(RequestError, match=r"in turn|no user message"):
        prompt_ids(gpt2, messages)


def test_a_model_without_template_does_not_chat(gpt2):
    """GLM, which was never trained to chat, is asked as if it were."""
    with pytest.raises(RequestError, match="not trained to chat"):
        prompt_ids(gpt2, as_messages("hello"))


TOOL = {
    "name": "天气",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
def glm4(tmp_path):
    return GLM4Tokenizer(write_ranks(tmp_path, RANKED))


@pytest.mark.parametrize("tool", [TOOL, {"type": "function", "function": TOOL}])
@pytest.mark.parametrize("content", ["", "be brief"])
def test_tools_of_glm4(tool, content, glm4):
    """GLM-4 is told of its tools in other words than it was trained with, or not at all."""
    messages = [{"role": "system", "content": content, "tools": [tool]}]
    messages.append({"role": "user", "content": "北京天气"})
    ids = prompt_ids(glm4, as_messages(messages))
    described = json.dumps(TOOL, indent=4, ensure_ascii=False)
    written = (
        "[gMASK]<sop><|system|>\n你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 "
        "GLM-4 模型开发的，你的任务是针对用户的问题和要求提供适当的答复和支持。\n\n# 可用工具"
        f"\n\n## 天气\n\n{described}\n在调用上述函数时，请使用 Json 格式表示调用的参数。"
        + (f"<|system|>\n{content}" if content else "")
        + "<|user|>\n北京天气<|assistant|>"
    )
    assert glm4.decode(ids, special=True) == written


@pytest.mark.parametrize("tool", [3, {"type": "python"}, {"type": "function"}, {"function": 3}])
def test_tools_that_glm4_cannot_have(tool, glm4):
    """A tool is described to GLM-4 in a way that it never saw."""
    messages = [
        {"role": "system", "content": "", "tools": [tool]},
        {"role": "user", "content": "x"},
    ]
    with pytest.raises(RequestError, match="is no function with a name"):
        prompt_ids(glm4, as_messages(messages))


@pytest.mark.parametrize(
    ("text", "tool", "arguments"),
    [
        ('天气\n{"city": "北京", "days": 3}', "天气", {"city": "北京", "days": 3}),
        ("天气\n{city: 1}", "天气", None),
        ("天气\n[1]", "天气", None),
        ('天气\n{"x": NaN}', "天气", None),
        ("\n今天晴。", None, None),
    ],
)
def test_calls_of_glm4(text, tool, arguments):
    """A call of a tool is shown to the user as an answer, or its arguments are lost."""
    asked = [Message("system", "", tools=(TOOL,)), Message("user", "q")]
    reply = read_reply("glm4", text, asked)
    assert (reply.tool, reply.arguments) == (tool, arguments)
    if tool is None:
        assert reply.content == "今天晴。"
