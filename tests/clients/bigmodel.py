"""What clients of BigModel do; run by test_serve_bigmodel.py in an environment of its own.

OPENGLM_SDK says which SDK it is, OPENGLM_URL where the server is, OPENGLM_KEY with which key.
"""

import json
import os
import time

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


def later(client, text, **more):
    messages = [{"role": "user", "content": text}]
    asked = {"model": "glm-4", "messages": messages} | more
    return client.chat.asyncCompletions.create(**asked)


def result(client, name):
    for _ in range(600):
        found = client.chat.asyncCompletions.retrieve_completion_result(id=name)
        if found.task_status != "PROCESSING":
            return found
        assert not hasattr(found, "choices")  # by it the SDK knows an answer
        time.sleep(0.05)
    raise TimeoutError


def test_an_answer_for_later(client):
    task = later(client, "hi", request_id="my-request")
    assert task.task_status == "PROCESSING"
    assert task.request_id == "my-request"
    assert not hasattr(task, "choices")
    done = result(client, task.id)
    assert (done.id, done.request_id, done.model) == (task.id, "my-request", "glm-4")
    assert done.task_status == "SUCCESS"
    assert done.choices[0].message.content == "Hello, 你好👋!"
    assert done.usage.completion_tokens > 5
    calls = result(client, later(client, "weather?", tools=[TOOL], tool_choice="auto").id)
    (call,) = calls.choices[0].message.tool_calls
    assert json.loads(call.function.arguments) == {"city": "北京"}


def test_answers_for_later_that_there_are_none(client):
    found = result(client, later(client, "ж" * 3000).id)
    assert found.task_status == "FAIL"
    assert found.error["code"] == "1261"
    with pytest.raises(ERRORS.APIRequestFailedError) as error:
        later(client, "hi", model="glm-99")
    assert error.value.response.json()["error"]["code"] == "1211"
    with pytest.raises(ERRORS.APIStatusError) as error:
        client.chat.asyncCompletions.retrieve_completion_result(id="async-" + "0" * 32)
    assert error.value.response.status_code == 404


def test_embeddings(client):
    done = client.embeddings.create(model="glm-4", input=["hi", "你好"], request_id=1.5)
    assert [one.index for one in done.data] == [0, 1]
    assert sum(x * x for x in done.data[0].embedding) == pytest.approx(1)
    assert done.usage.completion_tokens == 0
    assert done.usage.total_tokens == done.usage.prompt_tokens > 0
    alone = client.embeddings.create(model="glm-4", input="hi", dimensions=8)
    assert len(alone.data[0].embedding) == 8
    with pytest.raises(ERRORS.APIRequestFailedError) as error:
        client.embeddings.create(model="glm-4", input=["hi"] * 65)
    assert error.value.response.json()["error"]["code"] == "1214"


def test_what_is_not_here_yet(client):
    with pytest.raises(ERRORS.APIStatusError) as error:
        client.images.generations(model="cogview-3", prompt="a cat")
    assert error.value.response.json()["error"]["code"] == "1222"


def upload(client, lines):
    text = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=("lines.jsonl", text.encode()), purpose="batch")


def test_files(client):
    file = upload(client, [{"a": 1}])
    assert (file.filename, file.bytes, file.purpose) == ("lines.jsonl", 8, "batch")
    assert file.id in [one.id for one in client.files.list(purpose="batch", limit=5).data]
    assert client.files.content(file.id).content == b'{"a": 1}'
    assert client.files.delete(file.id).deleted
    with pytest.raises(ERRORS.APIStatusError):
        client.files.content(file.id)
    with pytest.raises(ERRORS.APIRequestFailedError) as error:
        client.files.create(file=("a.txt", b"x"), purpose="retrieval")
    assert error.value.response.json()["error"]["code"] == "1214"


@pytest.mark.parametrize("dialect", ["/v1", "/v4"])
def test_a_batch(client, dialect):
    url = "/v4/chat/completions"  # as in BigModel's documentation, whatever the endpoint
    lines = [
        {"custom_id": str(i), "method": "POST", "url": url, "body": {
            "model": model, "messages": [{"role": "user", "content": "hi"}]}}
        for i, model in enumerate(["glm-4", "glm-99", "glm-4"])
    ]  # fmt: skip
    file = upload(client, lines)
    batch = client.batches.create(
        input_file_id=file.id, endpoint=f"{dialect}/chat/completions", metadata={"a": "b"}
    )
    assert batch.status == "validating"
    assert batch.metadata == {"a": "b"}
    for _ in range(600):
        batch = client.batches.retrieve(batch.id)
        if batch.status == "completed":
            break
        time.sleep(0.05)
    assert (batch.request_counts.completed, batch.request_counts.failed) == (2, 1)
    assert batch.id in [one.id for one in client.batches.list(limit=5)]
    text = client.files.content(batch.output_file_id).content.decode()
    found = [json.loads(line) for line in text.splitlines()]
    assert [line["custom_id"] for line in found] == ["0", "2"]
    (choice,) = found[0]["response"]["body"]["choices"]
    assert choice["message"]["content"] == "Hello, 你好👋!"
    bad = json.loads(client.files.content(batch.error_file_id).content)
    assert bad["response"]["body"]["error"]["code"] == "1211"
    with pytest.raises(ERRORS.APIStatusError):  # auto_delete_input_file, which the SDK always sends
        client.files.content(file.id)
    with pytest.raises(ERRORS.APIRequestFailedError):
        client.batches.cancel(batch.id)
