"""What an operator relies on: keys, limits, clients that leave, counts, and a quiet end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time

import httpx2
import pytest

import openglm
from helpers_serve import scripted, serving
from openglm.serve.limits import LimitSettings

JSON = {"Content-Type": "application/json"}
LONG = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "stream": True}


def script(conversation: str) -> str:
    return "\n" + "word " * 400


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = {"slow": scripted(tmp_path_factory.mktemp("slow"), script), "mini": openglm.load()}
    with serving(models, limits=LimitSettings(queue=64)) as found:
        yield found


@pytest.fixture
def client(served):
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=60) as found:
        yield found


def running(client):
    """Requests that the engines have."""
    lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.split()[-1])
        for line in lines
        if line.startswith(("openglm_num_requests_running{", "openglm_num_requests_waiting{"))
    )


def is_there(address):
    try:
        return httpx2.get(f"{address}/health").status_code == 200
    except httpx2.TransportError:
        return False


def wait_until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


STRANGERS = [
    "/", "/docs", "/openapi.json", "/metrics", "/ready", "/version", "/v1", "/v1/models",
    "/v1/models/", "//v1/models", "/v1/%6dodels", "/%761/models", "/v1/models/mini", "/nothing",
    "/api/paas/v4/models", "/v1/../metrics", "/health/", "/health/../metrics", "/static/x.js",
]  # fmt: skip


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"])
def test_strangers_learn_nothing(served, method):
    """A path, or a way to write it, is answered without a key."""
    address, _ = served
    for path in STRANGERS:
        for key in ({}, {"Authorization": "Bearer a.b"}, {"Authorization": "Basic eDp5"}):
            found = httpx2.request(method, address + path, headers=key)
            assert found.status_code == 401, (method, path)
            assert b"mini" not in found.content
    assert httpx2.get(f"{address}/health").json() == {"status": "ok"}


def test_a_strangers_body_is_not_read(served):
    """Somebody without a key can make the server read megabytes."""
    address, _ = served
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as plug:
        head = ("POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Length: 9999999")
        plug.sendall("\r\n".join([*head, "", ""]).encode())
        assert b"401" in plug.recv(100)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"model":' * 20_000,
        b'{"model":"mini","prompt":"x","temperature":NaN}',
        b'{"model":"mini","prompt":"x","temperature":1e400}',
        b'{"model":"mini","prompt":"x","max_tokens":1' + b"0" * 5000 + b"}",
        b'{"model":"mini","prompt":"x","max_tokens":true}',
        b'{"model":"mini","prompt":"x","max_tokens":-1}',
        b'{"model":"mini","prompt":"x","n":1000000}',
        b'{"model":["mini"],"prompt":"x"}',
        b'{"model":"mini","prompt":{"a":1}}',
        b'{"model":"mini","prompt":"\\ud800"}',
        b'{"model":"mini","prompt":"x","stop":[' + b'"a",' * 300 + b'"b"]}',
    ],
    ids=lambda body: repr(body[:48]),
)  # fmt: skip
def test_bodies_that_are_none(client, body):
    """A malformed request takes the server down, or is the server's fault."""
    found = client.post("/v1/completions", content=body, headers=JSON)
    assert found.status_code == 400, found.text[:300]
    assert found.json()["error"]["message"]


def test_what_is_meant_is_told(client):
    """Who writes curl by hand is told what is wrong in words of the server's insides."""

    def message(method, path, **sent):
        return client.request(method, path, **sent).json()["error"]["message"]

    body = '{"model": "mini", "prompt": "x"}'
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert "Content-Type" in message("POST", "/v1/completions", content=body, headers=form)
    assert "not JSON" in message("POST", "/v1/completions", content=body[:-1], headers=JSON)
    assert "Given: 'many'" in message("POST", "/v1/completions", json={"model": "m", "n": "many"})
    assert "did you mean '/v1/completions'" in message("POST", "/v1/completion")
    assert "it takes POST" in message("GET", "/v1/completions")


def test_what_is_wrong_is_said(client):
    """What a client got wrong is called a fault of the server, or is taken for something else."""
    ids = {"model": "mini", "tokens": [10**6]}
    assert client.post("/v1/detokenize", json=ids).status_code == 400
    body = {"model": "mini", "prompt": "x", "max_tokens": 1}
    assert client.post("/v1/completions", json=body | {"temperature": True}).status_code == 400
    found = client.post("/v1/completions", json=body | {"prompt": "x " * 50_000})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert found.json()["error"]["param"] == "prompt"
    found = client.post("/v1/completions", json=body | {"温度": 1, "a\r\nb: c": 1, "user": "x"})
    assert found.headers["x-openglm-ignored"] == r"a\r\nb: c, user, \u6e29\u5ea6"
    many = {f"x{index}": 1 for index in range(5000)}
    assert len(client.post("/v1/completions", json=body | many).headers["x-openglm-ignored"]) < 512
    for calls in (1, [None], [{"function": 1}], [{"function": {"name": 1, "arguments": ""}}]):
        said = [{"role": "assistant", "tool_calls": calls}, {"role": "user", "content": "x"}]
        found = client.post("/v1/chat/completions", json={"model": "slow", "messages": said})
        assert found.status_code == 400
    said = {"model": "slow", "messages": [{"role": [], "content": "x"}]}
    assert client.post("/v1/chat/completions", json=said).status_code == 400


def test_a_client_that_leaves(client):
    """What nobody waits for is written to its end."""
    for _ in range(5):
        with client.stream("POST", "/v1/chat/completions", json=LONG) as response:
            next(response.iter_lines())
    wait_until(lambda: running(client) == 0)
    body = LONG | {"stream": False}
    with pytest.raises(httpx2.TimeoutException):
        client.post("/v1/chat/completions", json=body, timeout=0.2)
    wait_until(lambda: running(client) == 0)


def test_the_log_of_requests(served, client, caplog):
    """The log lacks what an operator asks for, tells what users say, or believes them."""
    address, key = served
    key_id, secret = key.split(".")
    mine = {"X-Request-Id": "mine-1"}
    body = {"model": "mini", "prompt": "MARKER of a prompt", "max_tokens": 3, "temperature": 0}
    with caplog.at_level(logging.INFO, "openglm.requests"):
        done = client.post("/v1/completions?q=MARKER", json=body, headers=mine)
        assert done.headers["x-request-id"] == "mine-1"
        with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as stream:
            read = list(stream.iter_lines())
        with client.stream("POST", "/v1/chat/completions", json=LONG) as response:
            next(response.iter_lines())
        wait_until(lambda: len(caplog.records) == 3)
        client.get("/v1/files/MARKER", headers={"X-Request-Id": "x" * 10_000})
        lost = client.get("/v1/nothing")
        stranger = httpx2.get(f"{address}/v1/models", headers={"Authorization": f"Bearer x{key}"})
        health = httpx2.get(f"{address}/health", headers=mine)
        wait_until(lambda: len(caplog.records) == 7)  # each is written behind its answer
    lines = [record.args for record in caplog.records]
    paths = ["/v1/completions"] * 2 + ["/v1/chat/completions", "/v1/files/{file_id}"]
    assert [line["path"] for line in lines] == [*paths, "/v1/nothing", "/v1/models", "/health"]
    assert [line["status"] for line in lines] == [200, 200, 499, 404, 404, 401, 200]
    assert [line["key"] for line in lines] == [key_id] * 5 + [None] * 2
    ids = ["mine-1", stream, response, None, lost, stranger, health]
    for line, found in zip(lines, ids, strict=True):
        if isinstance(found, httpx2.Response):
            assert line["id"] == found.headers["x-request-id"]
    assert lines[3]["id"].startswith("req-")
    used = done.json()["usage"]
    for line in lines[:2]:
        assert line["model"] == "mini"
        assert {name: line[name] for name in ("prompt_tokens", "completion_tokens")} == {
            name: used[name] for name in ("prompt_tokens", "completion_tokens")
        }
    assert read
    assert lines[2]["model"] == "slow"
    assert 0 < lines[2]["completion_tokens"] < 400
    assert "MARKER" not in caplog.text
    assert secret not in caplog.text
    assert done.json()["choices"][0]["text"] not in caplog.text


def test_many_streams_at_once(served):
    """Answers are mixed up, or some are lost, when there are many."""
    address, key = served
    model = openglm.load()
    prompts = [f"{i} The river" for i in range(24)]
    expected = [model.generate(p, temperature=0, max_tokens=12).text for p in prompts]

    async def ask(client, prompt):
        body = {"model": "mini", "prompt": prompt, "temperature": 0, "max_tokens": 12}
        text = ""
        async with client.stream("POST", "/v1/completions", json=body | {"stream": True}) as found:
            async for line in found.aiter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
        return text

    async def all_of_them():
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=60) as client:
            return await asyncio.gather(*(ask(client, prompt) for prompt in prompts))

    assert asyncio.run(all_of_them()) == expected


def test_limits_of_a_key(tmp_path):
    """A key takes more than its share, or is not told when to come back."""
    models = {"slow": scripted(tmp_path, script)}
    with serving(models, requests_per_minute=4, concurrency=1) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            with client.stream("POST", "/v1/chat/completions", json=LONG) as response:
                lines = response.iter_lines()  # held: the stream would be closed with it
                next(lines)
                second = client.post("/v1/chat/completions", json=LONG)
                assert second.status_code == 429
                assert second.json()["error"]["code"] == "concurrency_limit_exceeded"
                assert int(second.headers["retry-after"]) >= 1
            wait_until(lambda: running(client) == 0)
            short = {**LONG, "stream": False, "max_tokens": 2}
            codes = [client.post("/v1/chat/completions", json=short).status_code for _ in range(4)]
            assert codes == [200, 200, 200, 429]
            v4 = client.post("/api/paas/v4/chat/completions", json=short)
            assert v4.json()["error"]["code"] == "1303"


def test_counting_tokens_is_a_call_too(tmp_path):
    """A key can keep the server busy with tokenising, as often as it likes."""
    models = {"slow": scripted(tmp_path, script)}
    texts = {"model": "slow", "text": "x"}, {"model": "slow", "tokens": [1]}
    with serving(models, requests_per_minute=4) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            asked = [("tokenize", texts[0]), ("detokenize", texts[1])] * 3
            codes = [client.post(f"/v1/{path}", json=body).status_code for path, body in asked]
            assert codes == [200] * 4 + [429] * 2
            for _ in range(9):
                assert client.get("/v1/models").status_code == 200


def test_what_is_counted(client):
    """A dashboard shows other numbers than were served."""

    def read(name):
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    before = {p: read(f"{p}generation_tokens_total") for p in ("openglm_", "vllm:")}
    times = read("vllm:time_to_first_token_seconds_count")
    body = {"model": "mini", "prompt": "The river", "max_tokens": 7, "temperature": 0}
    used = client.post("/v1/completions", json=body).json()["usage"]["completion_tokens"]
    for prefix, count in before.items():
        assert read(f"{prefix}generation_tokens_total") == count + used
    assert read("vllm:time_to_first_token_seconds_count") == times + 1
    assert read("openglm_engine_steps_total") > 0


def test_the_end_waits_for_answers(tmp_path):
    """A stream is cut when the server is told to end, it never ends, or its log is not JSON."""
    code = "from openglm.cli.main import main; main()"
    environment = os.environ | {"OPENGLM_HOME": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = [sys.executable, "-c", code, "serve", "--port", str(port)]
    log = tmp_path / "log"
    with (
        log.open("wb") as kept,
        subprocess.Popen(
            words, env=environment, stdout=subprocess.PIPE, stderr=kept, text=True
        ) as server,
    ):
        try:
            text = ""
            while "curl" not in text:
                text += server.stdout.readline()
            key = text.split("Bearer ")[1].strip(" '\n")
            address = f"http://127.0.0.1:{port}"
            wait_until(lambda: is_there(address), 60)
            body = {"model": "mini", "prompt": "The river", "max_tokens": 150, "min_tokens": 150}
            headers = {"Authorization": f"Bearer {key}"}
            with httpx2.stream(
                "POST", f"{address}/v1/completions", json=body | {"stream": True}, headers=headers
            ) as response:
                lines = response.iter_lines()
                next(lines)
                server.send_signal(signal.SIGTERM)
                rest = list(lines)
            assert rest[-2:] == ["data: [DONE]", ""] or rest[-1] == "data: [DONE]"
            assert server.wait(20) == 0
        finally:
            server.kill()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = [line for line in lines if line.get("path") == "/v1/completions"]
    assert [(line["status"], line["completion_tokens"]) for line in last] == [(200, 150)]
    assert {line["path"] for line in lines} == {"/health", "/v1/completions"}
    assert "The river" not in log.read_text()


def test_the_first_servers(tmp_path):
    """Programs that were written for ChatGLM-6B's api.py do not run."""
    models = {"glm": scripted(tmp_path, lambda conversation: "\n好")}
    with serving(models, legacy=True) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": "再见", "history": [["你好", "您好"]], "temperature": 0}
        found = httpx2.post(address, json=body, headers=headers).json()
        assert found["response"] == "好"
        assert found["history"] == [["你好", "您好"], ["再见", "好"]]
        assert found["status"] == 200
        code = httpx2.post(address, json={"prompt": "#", "lang": "Python"}, headers=headers)
        assert code.json()["lang"] == "Python"
        short = httpx2.post(address, json=body | {"max_length": 3}, headers=headers)
        assert short.status_code == 400
        assert httpx2.post(address, json=body).status_code == 401
