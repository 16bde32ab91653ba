"""Conversations are checked, and tool calls are read without running anything."""

from __future__ import annotations

import pytest

from openglm.chat import Message, as_messages, prompt_ids, read_reply
from openglm.chat.tools import parse_tool_call
from openglm.errors import RequestError


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
