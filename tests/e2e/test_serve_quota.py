"""The tokens that a key may use in a day: never more, and all of them."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager

import httpx2
import pytest

import openglm
from helpers_serve import scripted, serving
from openglm.serve.hosted import Hosted

PER_DAY = 100
LONG, LONGER = "word " * 120, "word " * 400
SHORT = {"model": "mini", "prompt": "The river", "temperature": 0}
CHAT = {"model": "glm-4", "messages": [{"role": "user", "content": "x"}]}
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("one", "two")]
V4 = "/api/paas/v4/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Address of a server, and its store of keys."""
    found = []
    models = {
        "glm-4": scripted(tmp_path_factory.mktemp("glm4"), lambda conversation: f"\n{LONGER}"),
        "mini": openglm.load(),
    }
    with serving(models, with_keys=found.append) as (address, _):
        yield address, found[0]


@pytest.fixture
def client(served):
    """Calls with a fresh key of so many tokens a day, one call at once."""
    address, keys = served
    key = keys.create("small", tokens_per_day=PER_DAY, concurrency=1)
    with calling(address, key) as found:
        yield found


@contextmanager
def calling(address, key):
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=60) as found:
        yield found


def used(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["usage"]["total_tokens"]


def refused(answer):
    """The message of a refusal."""
    assert answer.status_code == 429, answer.text[:300]
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["code"] in ("insufficient_quota", "1304")
    return answer.json()["error"]["message"]


def test_a_prompt_beyond_the_day(client):
    """A call uses many times the quota, since only the answer was reserved."""
    for path, body in (
        ("/v1/completions", SHORT | {"prompt": LONG, "max_tokens": 1}),
        ("/v1/completions", SHORT | {"prompt": LONG, "max_tokens": 0, "echo": True}),
        ("/v1/completions", SHORT | {"prompt": ["The river"] * 60, "max_tokens": 1}),
        (
            "/v1/chat/completions",
            {"model": "glm-4", "messages": [{"role": "user", "content": LONG}]},
        ),
        ("/v1/fill", {"model": "mini", "text": f"{LONG}[MASK]"}),
        ("/v1/embeddings", {"model": "mini", "input": ["The river"] * 60}),
        (V4, CHAT | {"messages": [{"role": "user", "content": LONG}]}),
    ):
        message = refused(client.post(path, json=body))
        assert f"{PER_DAY} are left" in message
    # Nothing was used, and no place was kept.
    assert used(client.post("/v1/completions", json=SHORT | {"max_tokens": 90})) > 60


@pytest.mark.parametrize("path", ["/v1/chat/completions", V4])
def test_an_answer_without_a_bound(client, path):
    """A fresh key is refused for what nobody asked for, or writes more than its day has."""
    whole = client.post(path, json=CHAT)
    assert used(whole) == PER_DAY
    assert whole.json()["choices"][0]["finish_reason"] == "length"
    refused(client.post(path, json=CHAT))


@pytest.mark.parametrize(
    ("path", "body", "least"),
    [
        ("/v1/chat/completions", CHAT | {"n": 3}, 98),
        ("/v1/fill", {"model": "mini", "text": "[MASK] and [MASK]", "min_tokens": 40}, 80),
        ("/v1/completions", SHORT | {"prompt": ["The river"] * 9, "min_tokens": 7}, 90),
    ],
)
def test_all_that_is_written_shares_what_is_left(client, path, body, least):
    """Each completion, or each blank of one, may use all that the day has left."""
    assert least <= used(client.post(path, json=body)) <= PER_DAY


def test_what_is_asked_for_is_honoured_or_refused(client):
    """An explicit `max_tokens` is lowered unasked, or what was not needed is not given back."""
    body = CHAT | {"max_tokens": PER_DAY}
    assert "max_tokens" in refused(client.post("/v1/chat/completions", json=body))
    assert "max_tokens" in refused(client.post(V4, json=body))
    least = CHAT | {"min_tokens": PER_DAY}
    refused(client.post("/v1/chat/completions", json=least))
    first = used(client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 5}))
    again = CHAT | {"max_tokens": PER_DAY - 2 * first + 5}
    assert used(client.post("/v1/chat/completions", json=again)) == PER_DAY - first
    refused(client.post("/v1/chat/completions", json=CHAT | {"max_tokens": 1}))


def test_what_uses_no_tokens_needs_none(client):
    """A key whose day is used up can no longer count tokens, or fetch its files."""
    assert used(client.post("/v1/chat/completions", json=CHAT)) == PER_DAY
    text = {"model": "mini", "text": "The river"}
    assert client.post("/v1/tokenize", json=text).status_code == 200
    file = {"file": ("a.txt", b"x")}
    assert client.post("/v1/files", files=file, data={"purpose": "user_data"}).status_code == 200


def test_no_choice_of_a_tool_is_made_for_a_prompt_beyond_the_day(client):
    """The model reads a prompt for a choice of tools before anybody asks how long it is."""
    long = [{"role": "user", "content": LONG}]
    body = CHAT | {"messages": long, "tools": TOOLS, "tool_choice": "required"}
    before = client.get("/metrics").text
    refused(client.post("/v1/chat/completions", json=body))
    steps = [line for line in before.splitlines() if line.startswith("openglm_engine_steps_total{")]
    assert steps
    after = client.get("/metrics").text
    assert all(line in after for line in steps)


def test_overload_is_told_before_a_prompt_is_read(served, monkeypatch):
    """A key above its limits makes the server tokenise what it then refuses."""
    address, keys = served
    prepare, read = Hosted.prepare, []

    async def counted(self, *given, **named):
        read.append(given)
        return await prepare(self, *given, **named)

    monkeypatch.setattr(Hosted, "prepare", counted)
    with calling(address, keys.create("one", tokens_per_day=10**4, concurrency=1)) as client:
        streamed = CHAT | {"stream": True}
        with client.stream("POST", "/v1/chat/completions", json=streamed) as response:
            lines = response.iter_lines()  # held: the stream would be closed with it
            next(lines)
            second = client.post("/v1/completions", json=SHORT | {"prompt": LONG})
    assert second.json()["error"]["code"] == "concurrency_limit_exceeded"
    assert len(read) == 1


def test_lines_of_a_batch_take_turns(served):
    """Lines are refused, or cut short, because of tokens that others of them will give back."""
    address, keys = served
    key = keys.create("batch", tokens_per_day=1000)
    body = {"model": "glm-4", "messages": CHAT["messages"], "stop": "word word"}
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i in range(6)
    ]
    with calling(address, key) as client:
        file = {"file": ("a.jsonl", "\n".join(map(json.dumps, lines)).encode())}
        source = client.post("/v1/files", files=file, data={"purpose": "batch"}).json()["id"]
        asked = {"input_file_id": source, "endpoint": "/v1/chat/completions"}
        batch = client.post("/v1/batches", json=asked).json()
        end = time.monotonic() + 60
        while batch["status"] != "completed":
            assert time.monotonic() < end
            time.sleep(0.1)
            batch = client.get(f"/v1/batches/{batch['id']}").json()
        assert batch["request_counts"] == {"total": 6, "completed": 6, "failed": 0}
        found = client.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        reasons = [
            json.loads(line)["response"]["body"]["choices"][0]["finish_reason"] for line in found
        ]
        assert reasons == ["stop"] * 6
