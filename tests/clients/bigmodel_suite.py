"""The calls of the SDKs' own integration tests, which print errors instead of failing.

Those tests are in neither SDK's package. What they ask for is asked for here, and answers are
checked; what they ask for and no server of ours can do must be refused with BigModel's code. Run by
test_serve_bigmodel.py like bigmodel.py, with OPENGLM_LIMITED_URL and OPENGLM_LIMITED_KEY, too: a
server at which the key has one call a minute.
"""

import base64
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
HELLO = "Hello, 你好👋!"
SLOGAN = [
    {"role": "user", "content": "作为一名营销专家，请写一个slogan"},
    {"role": "assistant", "content": "请先介绍一下您的产品"},
    {"role": "user", "content": "一个语言模型平台"},
    {"role": "assistant", "content": "智能触手可及!"},
    {"role": "user", "content": "再写一个更精准的"},
]
PLAY = {
    "user_info": "我是一位导演",
    "bot_info": "你是一位歌手",
    "bot_name": "苏梦远",
    "user_name": "陆星辰",
}
GAP = {
    "target": {
        "path": "sum.py",
        "language": "Python",
        "code_prefix": "def add(a, b):\n",
        "code_suffix": "\n\nprint(add(1, 2))\n",
    },
    "contexts": [{"path": "other.py", "code": "import math"}],
}


def connect(url, key):
    return Client(api_key=key, base_url=f"{url}/api/paas/v4", max_retries=0)


@pytest.fixture
def client():
    return connect(os.environ["OPENGLM_URL"], os.environ["OPENGLM_KEY"])


def ask(client, messages=SLOGAN, **more):
    asked = {"model": "glm-4", "messages": messages, "request_id": time.time()} | more
    return client.chat.completions.create(**asked)


def wait(client, task):
    for _ in range(600):
        found = client.chat.asyncCompletions.retrieve_completion_result(id=task.id)
        if found.task_status != "PROCESSING":
            return found
        time.sleep(0.05)
    raise TimeoutError


def refused(call, code, error=None):
    with pytest.raises(error or ERRORS.APIRequestFailedError) as found:
        call()
    assert found.value.response.json()["error"]["code"] == code


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0, "top_p": 0.7}, {"temperature": 1, "top_p": 0.7},
        {"temperature": 0.9, "top_p": 0}, {"temperature": 0.9, "top_p": 1},
    ],
    ids=str,
)  # fmt: skip
def test_the_ends_of_sampling(client, sampling):
    """The SDK sends 0.01 or 0.99 for these, and that nothing is drawn at 0."""
    done = ask(client, max_tokens=2000, user_id="12345678", **sampling)
    assert done.choices[0].message.content == HELLO


@pytest.mark.parametrize(
    "more",
    [
        {"sensitive_word_check": {"type": "ALL", "status": "DISABLE"}},
        {"extra_body": {"temperature": 0.5, "max_tokens": 50}},
        {"extra_body": {"thinking": {"type": "disabled"}}},
        {"tools": [{"type": "web_search", "web_search": {"search_query": "x", "enable": False}}]},
    ],
    ids=str,
)
def test_what_is_taken_and_changes_nothing(client, more):
    assert ask(client, **more).choices[0].message.content == HELLO


@pytest.mark.parametrize("enable", [{}, {"enable": True}], ids=str)
def test_the_web_is_not_searched(client, enable):
    search = {"type": "web_search", "web_search": {"search_query": "x"} | enable}
    refused(lambda: ask(client, tools=[search]), "1212")
    asked = {"model": "glm-4", "messages": SLOGAN, "tools": [search]}
    refused(lambda: client.chat.asyncCompletions.create(**asked), "1212")


def test_a_stream(client):
    chunks = list(ask(client, stream=True, extra_body={"temperature": 0.5, "max_tokens": 50}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == HELLO


@pytest.mark.parametrize("url", ["https://example.com/a.png", "data:image/png;base64,{}"])
def test_pictures_are_not_read(client, url):
    url = url.format(base64.b64encode(b"\x89PNG").decode())
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": parts}]
    refused(lambda: ask(client, messages), "1210")
    refused(lambda: ask(client, messages, stream=True), "1210")


def test_a_part_is_played(client):
    """The model is not told whom it plays."""
    question = [{"role": "user", "content": "who are you?"}]
    done = ask(client, question, meta=PLAY)
    assert done.choices[0].message.content == "苏梦远"
    asked = {"model": "glm-4", "messages": question, "meta": PLAY}
    found = wait(client, client.chat.asyncCompletions.create(**asked))
    assert found.choices[0].message.content == "苏梦远"


def test_code_is_written_in_between(client):
    """The model sees the code in another order, or its answer loses the white space in front."""
    stop = ["<|endoftext|>", "<|user|>", "<|assistant|>", "<|observation|>"]
    more = {"top_p": 0.7, "temperature": 0.9, "max_tokens": 2000, "stop": stop, "extra": GAP}
    for messages in ([], SLOGAN):
        assert ask(client, messages, **more).choices[0].message.content == "    return a + b"
    chunks = ask(client, [], stream=True, **more)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "    return a + b"
    asked = {"model": "glm-4", "messages": [], **more}
    found = wait(client, client.chat.asyncCompletions.create(**asked))
    assert found.choices[0].message.content == "    return a + b"
    filled = ask(client, [], model="mini", extra=GAP, max_tokens=8, do_sample=False)
    assert 0 < filled.usage.completion_tokens <= 8
    refused(lambda: ask(client, [], extra={"target": {"language": "go"}}), "1213")
    refused(lambda: ask(client, [], model="chatglm3", extra=GAP), "1212")


def test_files(client, tmp_path):
    path = tmp_path / "demo.jsonl"
    path.write_text('{"a": 1}\n')
    files = []
    for _ in range(2):
        with path.open("rb") as file:
            files.append(client.files.create(file=file, purpose="fine-tune"))
    assert {file.id for file in files} <= {file.id for file in client.files.list().data}
    client.files.content(files[0].id).write_to_file(str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == path.read_bytes()
    assert all(client.files.delete(file_id=file.id).deleted for file in files)


def test_batches(client):
    url = "/v4/chat/completions"
    body = {"model": "glm-4", "messages": SLOGAN, "max_tokens": 1000}
    line = json.dumps({"custom_id": "1", "method": "POST", "url": url, "body": body})
    made = []
    for _ in range(3):
        file = client.files.create(file=("lines.jsonl", line.encode()), purpose="batch")
        made.append(
            client.batches.create(
                input_file_id=file.id,
                endpoint=url,
                completion_window="24h",
                metadata={"description": "job test"},
                auto_delete_input_file=True,
            )
        )
    for batch in made:
        found = client.batches.retrieve(batch.id)
        assert (found.endpoint, found.metadata) == (url, {"description": "job test"})
    page = client.batches.list(limit=2)
    assert page.has_more
    seen = [batch.id for batch in page.data]
    seen += [batch.id for batch in page.get_next_page().data]
    assert {batch.id for batch in made} <= set(seen)


def test_what_is_not_there(client):
    """Ids of another server are found here, or what is asked for by them is no error of the SDK."""
    calls = [
        lambda: client.chat.asyncCompletions.retrieve_completion_result(id="1014908592669352541"),
        lambda: client.batches.retrieve("batch_1790291013237211136"),
        lambda: client.batches.cancel("batch_1790291013237211136"),
        lambda: client.files.content("file-QDpVyDIhxj8mcFiduUydNqQN"),
    ]
    for call in calls:
        refused(call, "1222", ERRORS.APIStatusError)


def test_classes_of_errors(client):
    """A client that waits, or asks for another key, does not learn that it should."""
    stranger = connect(os.environ["OPENGLM_URL"], "a.b")
    refused(lambda: ask(stranger), "1000", ERRORS.APIAuthenticationError)
    refused(lambda: ask(client, model="glm-99"), "1211")
    limited = connect(os.environ["OPENGLM_LIMITED_URL"], os.environ["OPENGLM_LIMITED_KEY"])
    refused(lambda: [ask(limited) for _ in range(2)], "1303", ERRORS.APIReachLimitError)
