"""What clients are told of a request that does not fit, and operators of an address."""

from __future__ import annotations

import json
import socket

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from pydantic import ValidationError

from openglm.errors import ContextOverflow, UsageError
from openglm.serve.errors import as_serve_error
from openglm.serve.invalid import invalid_body
from openglm.serve.openai.requests import ChatRequest, CompletionRequest, ignored
from openglm.serve.server import bind

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
    assert ignored(request) == ["max_token;near=max_tokens", "user", "x" * 1000]
    assert json.dumps(ignored(request))


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
