"""What clients of BigModel do; run by test_serve_bigmodel.py in an environment of its own.

OPENGLM_SDK says which SDK it is, OPENGLM_URL where the server is, OPENGLM_KEY with which key.
"""

import json
import os

import pytest

SDK = os.environ["OPENGLM_SDK"]
if SDK == "zhipuai":
    import zhipuai as sdk
    from zhipuai import ZhipuAI as Client
else:
    import zai as sdk
    from zai import ZhipuAiClient as Client

ERRORS = sdk.core._errors if SDK == "zhipuai" else sdk.core
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(params=[True, False], ids=["plain key", "JWT"])
def client(request):
    return Client(
        api_key=os.environ["OPENGLM_KEY"],
        base_url=f"{os.environ['OPENGLM_URL']}/api/paas/v4",
        disable_token_cache=request.param,
        max_retries=0,
    )


def ask(client, text, **more):
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(**{"model": "glm-4", "messages": messages} | more)


def test_an_answer(client):
    done = ask(client, "hi", request_id="my-request", temperature=0, top_p=1)
    assert done.choices[0].message.content == "Hello, 你好👋!"
    assert done.choices[0].finish_reason == "stop"
    assert done.request_id == "my-request"
    assert done.usage.total_tokens == done.usage.prompt_tokens + done.usage.completion_tokens
    assert ask(client, "hi", request_id=1716.25).request_id == "1716.25"


def test_a_stream(client):
    chunks = list(ask(client, "hi", stream=True))
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(texts) == "Hello, 你好👋!"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[-1].usage.completion_tokens > 5  # with the end, or some clients miss it


def test_lines_that_are_no_lines(client):
    chunks = list(ask(client, "separators", stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == "a\u2028b\u2029c\u0085d"


def test_a_tool_is_called(client):
    choice = ask(client, "weather?", tools=[TOOL], tool_choice="auto").choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "北京"}
    chunks = list(ask(client, "weather?", tools=[TOOL], stream=True))
    calls = [one for c in chunks for one in c.choices[0].delta.tool_calls or []]
    assert calls[0].function.name == "get_weather"
    assert json.loads("".join(one.function.arguments for one in calls)) == {"city": "北京"}
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_greedy(client):
    texts = {
        ask(client, "free", do_sample=False, temperature=0.99, seed=seed).choices[0].message.content
        for seed in range(3)
    }
    assert len(texts) == 1


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"model": "glm-99"}, "1211"),
        ({"messages": []}, "1214"),
        ({"messages": [{"role": "king", "content": "x"}]}, "1210"),
        ({"tools": [{"type": "web_search", "web_search": {}}]}, "1212"),
        ({"messages": [{"role": "user", "content": "ж" * 3000}]}, "1261"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_errors(client, more, code):
    with pytest.raises(ERRORS.APIRequestFailedError) as found:
        ask(client, "hi", **more)
    assert found.value.response.json()["error"]["code"] == code
