"""What clients are told of a request that does not fit, and operators of an address."""

from __future__ import annotations

import json
import socket

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from pydantic import ValidationError

from openglm.errors import ContextOverflow, UsageError
from openglm.serve.bigmodel.requests import V4ChatRequest
from openglm.serve.errors import as_serve_error
from openglm.serve.fields import ignored
from openglm.serve.invalid import invalid_body
from openglm.serve.openai.requests import ChatRequest, CompletionRequest
from openglm.serve.runner import Place
from openglm.serve.server import bind
from openglm.serve.service import headers_of

CHAT = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
TEXT = {"model": "m", "prompt": "x"}
FIELD = {"type": "function", "function": {"name": "f"}}
WRONG = [
    (ChatRequest, {"messages": []}, "model", "required"),
    (ChatRequest, CHAT | {"temperature": "hot"}, "temperature", "'hot'"),
    (ChatRequest, CHAT | {"temperature": 3}, "temperature", "less than or equal to 2"),
    (ChatRequest, CHAT | {"stop": 3}, "stop", "string; or: Input should be a valid list. Given: 3"),
    (ChatRequest, CHAT | {"tools": [FIELD, {"function": {}}]}, "tools.1.function.name", "required"),
    (ChatRequest, CHAT | {"tool_choice": "any"}, "tool_choice", "'none', 'auto' or 'required'"),
    (CompletionRequest, TEXT | {"prompt": ["a", 3]}, "prompt.1", "Given: 3"),
    (CompletionRequest, TEXT | {"logit_bias": {"7": "x"}}, "logit_bias.7", "'x'"),
]


@pytest.mark.parametrize(("request_type", "body", "field", "words"), WRONG)
def test_a_field_is_named_with_its_value(request_type, body, field, words):
    """The message names pydantic's branches of a union, or not what was sent."""
    with pytest.raises(ValidationError) as raised:
        request_type.model_validate(body)
    error = invalid_body(raised.value.errors(), body)
    assert error.param == field
    assert error.message.startswith(f"{field}: ")
    assert words in error.message


def test_a_large_value_is_shown_in_part():
    """A body of megabytes would come back whole."""
    body = CHAT | {"stop": ["x" * 10_000] * 10_000}
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate(body)
    assert len(invalid_body(raised.value.errors(), body).message) < 500


def test_a_misspelt_field_is_recognised():
    """`max_token` is ignored, and nobody learns why texts are short."""
    body = TEXT | {"max_token": 3, "user": "me", "x" * 1000: 1, "nothing": None}
    request = CompletionRequest.model_validate(body)
    assert ignored(request) == ["max_token;near=max_tokens", "user", "x" * 64]
    assert json.dumps(ignored(request))


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SEARCH = {"type": "web_search", "web_search": {"enable": False, "search_query": "x"}}
DEEP = [
    (
        {"stream_options": {"include_usages": True}},
        "stream_options.include_usages;near=include_usage",
    ),
    ({"tools": [FIELD, {"function": {"name": "g", "strict": True}}]}, "tools.1.function.strict"),
    ({"tools": [FIELD | {"cache": 1}]}, "tools.0.cache"),
    ({"functions": [{"name": "f", "x": 1}]}, "functions.0.x"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}, "x": 1}}, "tool_choice.x"),
    (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {}, "description": "x"},
            }
        },
        "response_format.json_schema.description",
    ),
    (
        {"response_format": {"type": "json_object", "json_schema": {}}},
        "response_format.json_schema",
    ),
    ({"messages": [{"role": "user", "content": "x", "name": "ann"}]}, "messages.0.name"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", "cache": {}}]}]},
        "messages.0.content.0.cache",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [CALL | {"x": 1}]}, *CHAT["messages"]]},
        "messages.0.tool_calls.0.x",
    ),
]


@pytest.mark.parametrize("request_type", [ChatRequest, V4ChatRequest])
@pytest.mark.parametrize(("more", "name"), DEEP)
def test_a_field_inside_another_is_named(request_type, more, name):
    """What is ignored is only told if it stands at the top."""
    assert ignored(request_type.model_validate(CHAT | more)) == [name]


@pytest.mark.parametrize("name", ["x" * 63 + " y", " x", "\r\nX: 1", "\u00e9" * 64, " "])
def test_names_are_headers(name):
    """A name that its client chose is no header, and the answer is lost."""
    request = CompletionRequest.model_validate(TEXT | {name: 1})
    (value,) = headers_of(ignored(request)).values()
    assert value == value.strip()
    assert value.isprintable()
    assert len(value) <= 160


def test_of_two_bounds_one_counts():
    """`max_tokens` is overruled, and nobody says so."""
    both = ChatRequest.model_validate(CHAT | {"max_tokens": 5, "max_completion_tokens": 9})
    assert ignored(both) == ["max_tokens"]


@pytest.mark.parametrize("request_type", [ChatRequest, V4ChatRequest])
def test_what_is_honoured_is_not_named(request_type):
    """The header cries wolf over what clients send in every conversation."""
    said = [
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None},
        {"role": "tool", "tool_call_id": "call_1", "name": "f", "content": "x"},
    ]
    for strict in (True, False, None):
        schema = {"name": "s", "schema": {"properties": {"x": {"a": 1}}}, "strict": strict}
        body = CHAT | {"messages": said, "tools": [FIELD], "stream_options": {}}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
        assert ignored(request_type.model_validate(body)) == []


def test_what_only_bigmodel_has_is_named_too():
    """`user_id` does as little as OpenAI's `user`, and nobody is told."""
    body = CHAT | {"user_id": "u-12345", "meta": {"bot_nam": "x"}, "do_sample": False, "z": 1}
    request = V4ChatRequest.model_validate(body | {"tools": [SEARCH]})
    assert ignored(request) == ["user_id", "z", "meta.bot_nam;near=bot_name"]
    target = {"language": "c", "code_prefix": "", "code_suffix": "", "line": 1}
    request = V4ChatRequest.model_validate(CHAT | {"extra": {"target": target}})
    assert ignored(request) == ["messages", "extra.target.line"]


def test_few_are_named():
    """A header grows with what a client makes up, or the server looks at all of it."""
    said = [{"role": "user", "content": "x", "name": "ann"}] * 2000
    assert len(ignored(ChatRequest.model_validate(CHAT | {"messages": said}))) == 16


@pytest.mark.parametrize("request_type", [ChatRequest, V4ChatRequest])
def test_a_model_reads_of_a_tool_what_it_was_trained_on(request_type):
    """Settings for servers stand in the prompt."""
    told = {"name": "f", "description": "d", "parameters": {"type": "object", "strict": None}}
    given = told | {"strict": True, "cache": {}}
    for more in ({"tools": [{"type": "function", "function": given}]}, {"functions": [given]}):
        assert request_type.model_validate(CHAT | more).call(Place()).tools == [told]


@pytest.mark.parametrize(
    ("endpoint", "field"),
    [("chat/completions", "messages"), ("completions", "prompt"), ("fill", "text"), ("", None)],
)
def test_what_is_too_long_is_named(endpoint, field):
    """A long prompt of one endpoint is called by the field of another."""
    assert as_serve_error(ContextOverflow("long"), endpoint).param == field


def test_an_address_in_use_is_told():
    """A server would load a model for minutes, and then find its port taken."""
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} of 127.0.0.1 is in use"):
            bind("127.0.0.1", port)
    with bind("127.0.0.1", port) as again:  # a server that was ended may start anew
        assert again.getsockname() == ("127.0.0.1", port)


@pytest.mark.parametrize("host", ["203.0.113.7", "no such name"])
def test_an_address_of_somebody_else_is_told(host):
    """The error is the system's, without a word of what to do."""
    with pytest.raises(UsageError, match=host) as raised:
        bind(host, 0)
    assert "0.0.0.0" in (raised.value.hint or "")


def test_the_newer_internet_is_there():
    """`--host ::1` would not work."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    with bind("::1", 0) as found:
        assert found.family == socket.AF_INET6
