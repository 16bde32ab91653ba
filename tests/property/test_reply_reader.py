"""Answers that are read while they are written are those that are read whole."""

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openglm.chat import Message, read_reply
from openglm.chat.streaming import CallPiece, ReplyReader

KINDS = ["chatglm", "chatglm2", "chatglm3", "glm4"]
SNIPPETS = ["好", "a", ",", "?", " ", "\n", "[[训练时间]]", "[[训练", "!", "[", "《x》", "2023"]
ASKED = [Message("system", "", tools=({"name": "get_weather"},)), Message("user", "?")]


def read(kind, text, cuts, tools=()):
    reader = ReplyReader(kind, tools)
    pieces = []
    places = [0, *sorted(cut % (len(text) + 1) for cut in cuts), len(text)]
    for start, end in pairwise(places):
        pieces += reader.push(text[start:end])
    return pieces + reader.finish(), reader


def content_of(pieces):
    return "".join(piece for piece in pieces if isinstance(piece, str))


@pytest.mark.parametrize("kind", KINDS)
@given(st.lists(st.sampled_from(SNIPPETS), max_size=12).map("".join), st.lists(st.integers(0, 99)))
def test_texts(kind, text, cuts):
    """A streamed answer differs from the same answer at once."""
    text = "\n" + text if kind in ("chatglm3", "glm4") else text
    pieces, _ = read(kind, text, cuts)
    assert content_of(pieces) == read_reply(kind, text, [Message("user", "?")]).content
    assert all(pieces)


CALL = {
    "chatglm3": "get_weather\n```python\ntool_call(city='北京', days=3)\n```",
    "glm4": 'get_weather\n{"city": "北京", "days": 3}',
}


@pytest.mark.parametrize("kind", CALL)
@given(st.lists(st.integers(0, 200), max_size=9), st.booleans())
def test_calls(kind, cuts, thinks):
    """A call reaches the client in other words than the model's, or as text."""
    text = ("\n让我查一下<|assistant|>" if thinks else "") + CALL[kind]
    pieces, reader = read(kind, text, cuts, ("get_weather",))
    calls = [piece for piece in pieces if isinstance(piece, CallPiece)]
    assert [call.name for call in calls if call.name] == ["get_weather"]
    assert json.loads("".join(c.arguments for c in calls)) == {"city": "北京", "days": 3}
    assert content_of(pieces) == ("让我查一下" if thinks else "")
    assert reader.num_calls == 1
    assert read_reply(kind, text, ASKED).arguments == {"city": "北京", "days": 3}


@given(st.lists(st.integers(0, 200), max_size=9))
def test_what_names_no_tool_is_text(cuts):
    """A first line is lost, or a call of a tool that was not offered is passed on."""
    text = "Sure:\none<|assistant|>\ntwo"
    assert content_of(read("glm4", text, cuts, ("get_weather",))[0]) == "Sure:\none\ntwo"
    assert content_of(read("glm4", text, cuts)[0]) == "Sure:\none\ntwo"


def test_several_calls():
    """Two calls become one."""
    text = 'a\n{"x": 1}<|assistant|>b\n{"y": 2}'
    pieces, reader = read("glm4", text, [3, 9, 20], ("a", "b"))
    assert reader.num_calls == 2
    for index, wanted in enumerate(({"x": 1}, {"y": 2})):
        parts = [p for p in pieces if isinstance(p, CallPiece) and p.index == index]
        assert json.loads("".join(p.arguments for p in parts)) == wanted


def test_an_unreadable_call_is_passed_on():
    """What the model wrote is lost, or run."""
    body = "```python\ntool_call(x=__import__('os').system('id'))\n```"
    pieces, _ = read("chatglm3", "a\n" + body, [], ("a",))
    assert "".join(piece.arguments for piece in pieces) == body
