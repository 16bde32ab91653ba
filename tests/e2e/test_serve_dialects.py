"""Corners of the dialects: the older way to call functions, names of calls, what is not here."""

from __future__ import annotations

import json
import threading

import httpx2
import openai
import pytest

from helpers_serve import scripted, serving

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {}}}}
HELD = threading.Event()
BEGUN = threading.Event()


def script(conversation: str) -> str:
    question = conversation.rsplit("<|user|>", 1)[-1]
    if "<|observation|>" in conversation:
        return "\n晴天。"
    if "twice" in question:
        return '\nget_weather\n{"city": "a"}<|assistant|>get_weather\n{"city": "b"}'.lstrip()
    if "weather" in question:
        return '\n让我看看<|assistant|>get_weather\n{"city": "北京"}'
    if "wait" in question:
        BEGUN.set()
        assert HELD.wait(60)
    return "\nHello"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = {"glm-4": scripted(tmp_path_factory.mktemp("glm4"), script)}
    with serving(models, engine={"memory_bytes": 1 << 26}) as found:
        yield found


def send(served, method, path, body=None, key=None):
    address, own = served
    headers = {"Authorization": f"Bearer {own if key is None else key}"}
    return httpx2.request(method, f"{address}{path}", json=body, headers=headers, timeout=60)


def ask(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="glm-4", messages=messages, **more)


def test_a_function_is_called(client):
    """A program that was written before there were tools finds no call, or cannot answer it."""
    choice = ask(client, "weather?", functions=[WEATHER]).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.tool_calls is None
    assert choice.message.content == "让我看看"
    assert choice.message.function_call.name == "get_weather"
    assert json.loads(choice.message.function_call.arguments) == {"city": "北京"}
    messages = [
        {"role": "user", "content": "weather?"},
        choice.message.model_dump(exclude_none=True),
        {"role": "function", "name": "get_weather", "content": "sunny"},
    ]
    done = client.chat.completions.create(model="glm-4", messages=messages, functions=[WEATHER])
    assert (done.choices[0].message.content, done.choices[0].finish_reason) == ("晴天。", "stop")


@pytest.mark.parametrize("question", ["weather?", "twice"])
def test_a_call_of_a_function_in_a_stream(client, question):
    """Pieces of a call cannot be put together, or are of two."""
    whole = ask(client, question, functions=[WEATHER]).choices[0].message
    chunks = [c.choices[0] for c in ask(client, question, functions=[WEATHER], stream=True)]
    calls = [c.delta.function_call for c in chunks if c.delta.function_call is not None]
    assert calls[0].name == "get_weather"
    assert all(call.name is None for call in calls[1:])
    assert "".join(call.arguments for call in calls) == whole.function_call.arguments
    assert all(chunk.delta.tool_calls is None for chunk in chunks)
    assert chunks[-1].finish_reason == "function_call"


def test_which_function_is_called(client):
    """function_call is ignored."""
    named = ask(client, "hi", functions=[WEATHER], function_call={"name": "get_weather"})
    assert named.choices[0].message.function_call.name == "get_weather"
    none = ask(client, "weather?", functions=[WEATHER], function_call="none").choices[0]
    assert none.message.function_call is None
    with pytest.raises(openai.BadRequestError, match="get_time"):
        ask(client, "hi", functions=[WEATHER], function_call={"name": "get_time"})
    with pytest.raises(openai.BadRequestError, match="not both"):
        ask(client, "hi", functions=[WEATHER], tools=[{"type": "function", "function": WEATHER}])


def test_a_request_id_in_work_is_taken(served):
    """Two calls that run at once have one name, or a name is taken for ever."""
    path = "/api/paas/v4/chat/completions"
    body = {"model": "glm-4", "request_id": "mine-1"}
    waiting = body | {"messages": [{"role": "user", "content": "wait"}]}
    quick = body | {"messages": [{"role": "user", "content": "hi"}]}
    for streams in (False, True):
        HELD.clear()
        BEGUN.clear()
        first = threading.Thread(
            target=lambda stream=streams: send(served, "POST", path, waiting | {"stream": stream})
        )
        first.start()
        try:
            assert BEGUN.wait(60)
            refused = send(served, "POST", path, quick)
        finally:
            HELD.set()
            first.join()
        assert refused.status_code == 400
        assert refused.json()["error"]["code"] == "1231"
        answers = [send(served, "POST", path, quick) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200]
        bad = send(served, "POST", path, quick | {"messages": [{"role": "king"}]})
        assert bad.json()["error"]["code"] == "1210"
        assert send(served, "POST", path, quick).status_code == 200


def test_a_request_id_of_an_unfinished_job_is_taken(served):
    """Two asynchronous calls have one name, of which a client takes the wrong answer."""
    path = "/api/paas/v4/async/chat/completions"
    body = {"model": "glm-4", "request_id": "mine-2"}
    body["messages"] = [{"role": "user", "content": "wait"}]
    HELD.clear()
    try:
        task = send(served, "POST", path, body).json()
        refused = send(served, "POST", path, body)
    finally:
        HELD.set()
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "1231")
    for _ in range(600):
        found = send(served, "GET", f"/api/paas/v4/async-result/{task['id']}").json()
        if found["task_status"] != "PROCESSING":
            break
        threading.Event().wait(0.05)
    assert found["task_status"] == "SUCCESS"
    assert send(served, "POST", path, body).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/images/edits"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("POST", "/v1/audio/speech"),
        ("POST", "/v1/moderations"),
        ("POST", "/v1/responses"),
        ("DELETE", "/v1/responses/resp_1"),
        ("POST", "/v1/assistants"),
        ("POST", "/api/paas/v4/images/generations"),
        ("POST", "/api/paas/v4/async/images/generations"),
        ("POST", "/api/paas/v4/videos/generations"),
        ("POST", "/api/paas/v4/fine_tuning/jobs"),
        ("DELETE", "/api/paas/v4/fine_tuning/fine_tuned_models/mine"),
        ("GET", "/api/paas/v4/knowledge"),
        ("GET", "/api/paas/v4/knowledge/capacity"),
        ("PUT", "/api/paas/v4/document/7"),
        ("POST", "/api/paas/v4/moderations"),
        ("POST", "/api/paas/v4/tools"),
        ("POST", "/api/paas/v4/web_search"),
        ("POST", "/api/paas/v4/reader"),
        ("POST", "/api/paas/v4/audio/transcriptions"),
        ("POST", "/api/paas/v4/voice/clone"),
        ("POST", "/api/paas/v4/assistant/conversation/list"),
        ("POST", "/api/paas/v4/v1/agents"),
        ("POST", "/api/paas/v4/files/parser/create"),
        ("GET", "/api/paas/v4/files/parser/result/a/text"),
        ("POST", "/api/paas/v4/files/ocr"),
        ("POST", "/api/paas/v4/layout_parsing"),
    ],
)
def test_what_is_not_here_says_so(served, method, path):
    """A client cannot tell what is missing from what it wrote wrong, or a stranger learns it."""
    refused = send(served, method, path, {"anything": 1} if method == "POST" else None)
    error = refused.json()["error"]
    assert refused.status_code == 404
    assert "not available here yet" in error["message"]
    assert error["code"] == ("not_available" if path.startswith("/v1") else "1222")
    assert send(served, method, path, key="nobody.nothing").status_code == 401


def test_what_is_nowhere_is_an_error_too(served):
    """An unknown path has a page of HTML, or is taken for one that is missing here."""
    for path, code in (("/v1/nonsense", "not_found"), ("/api/paas/v4/imagesque", "1222")):
        refused = send(served, "POST", path, {})
        assert refused.status_code == 404
        assert refused.json()["error"]["code"] == code
        assert "yet" not in refused.json()["error"]["message"]
