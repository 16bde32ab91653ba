"""Files and batches with the official OpenAI client, which checks every response, and a crash."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager

import httpx2
import openai
import pytest

import openglm
from helpers_serve import scripted, serving


def script(conversation: str) -> str:
    question = conversation.rsplit("<|user|>", 1)[-1]
    return "\n" + ("word " * 400 if "long" in question else "Hello, 你好👋!")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = {"glm-4": scripted(tmp_path_factory.mktemp("glm4"), script), "mini": openglm.load()}
    with serving(models) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    with connected(*served) as found:
        yield found


def connected(address, key):
    return openai.OpenAI(
        base_url=f"{address}/v1", api_key=key, _strict_response_validation=True, max_retries=0
    )


def chat(number, text="hi", url="/v1/chat/completions", **body):
    asked = {"model": "glm-4", "messages": [{"role": "user", "content": text}]} | body
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": asked}


def upload(client, lines, purpose="batch"):
    text = "\n".join(json.dumps(line) for line in lines)
    return client.files.create(file=("lines.jsonl", text.encode()), purpose=purpose)


def begin(client, lines, endpoint="/v1/chat/completions", **more):
    return client.batches.create(
        input_file_id=upload(client, lines).id,
        endpoint=endpoint,
        completion_window="24h",
        **more,
    )


def ended(client, batch, seconds=60.0):
    end = time.monotonic() + seconds
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < end, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def answers(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


def test_files(client, served):
    """A file that was uploaded cannot be listed, read back or deleted."""
    content = bytes(range(256)) * 40
    file = client.files.create(file=("数据.bin", content), purpose="user_data")
    assert (file.filename, file.bytes, file.purpose) == ("数据.bin", len(content), "user_data")
    assert client.files.retrieve(file.id) == file
    assert client.files.content(file.id).read() == content
    every = [
        client.files.create(file=(f"{i}.jsonl", b"{}"), purpose="fine-tune").id for i in range(5)
    ]
    listed = client.files.list(purpose="fine-tune", limit=2)
    assert [one.id for one in listed.data] == [every[4], every[3]]
    assert listed.has_more
    assert [one.id for one in client.files.list(purpose="fine-tune", limit=2)] == every[::-1]
    ascending = client.files.list(purpose="fine-tune", limit=2, order="asc")
    assert [one.id for one in ascending] == every
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.content(file.id)


def test_what_a_file_looks_like_in_a_browser(client, served):
    """A page that somebody uploaded runs on the server's own address (stored XSS)."""
    page = b"<script>alert(1)</script>"
    file = client.files.create(file=('a";x=".html', page, "text/html"), purpose="user_data")
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    found = httpx2.get(f"{address}/v1/files/{file.id}/content", headers=headers)
    assert found.content == page
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["content-disposition"].startswith("attachment")
    assert found.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in found.headers["content-security-policy"]


def test_what_cannot_be_listed(served):
    """A cursor or a limit that is none makes the server fail, or is not looked at."""
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("/v1/files", "/v1/batches", "/api/paas/v4/files", "/api/paas/v4/batches"):
        for query in ("limit=0", "limit=x", "limit=10001", "order=up"):
            found = httpx2.get(f"{address}{path}?{query}", headers=headers)
            assert found.status_code == 400, query
            assert query.split("=")[0] in found.json()["error"]["message"]
        for cursor in ("%00", "x", "../x", f"file-{'0' * 32}"):
            found = httpx2.get(f"{address}{path}?after={cursor}", headers=headers)
            assert found.status_code == 404, cursor
        found = httpx2.get(f"{address}{path}?purpose=..%2f%00", headers=headers)
        assert found.status_code == 200


@pytest.mark.parametrize(
    ("form", "sent", "status", "named"),
    [
        ({}, {"file": ("a", b"x")}, 400, "purpose"),
        ({"purpose": "batch"}, {}, 400, "file"),
        ({"purpose": "batch", "file": "x"}, {}, 400, "file"),
        ({"purpose": "loot"}, {"file": ("a", b"x")}, 400, "loot"),
        ({"purpose": "batch"}, {"file": ("../../x", b"x")}, 400, "slash"),
        ({"purpose": "batch"}, [("file", ("a", b"x")), ("file", ("b", b"x"))], 400, "files"),
        ({"purpose": "batch"} | dict.fromkeys(map(str, range(40)), "x"), {"file": ("a", b"x")},
         400, "fields"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_uploads_that_are_none(served, form, sent, status, named):
    """A form that is none is a file, or makes the server fail."""
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    for path in ("/v1/files", "/api/paas/v4/files"):
        found = httpx2.post(address + path, data=form, files=sent, headers=headers)
        assert found.status_code == status
        assert named in found.json()["error"]["message"]
        plain = httpx2.post(address + path, json={"purpose": "batch"}, headers=headers)
        assert plain.status_code == 400


def test_names_that_no_header_can_have(served):
    """A field with a name in Chinese, or with a line's end in it, makes the server fail."""
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    odd = {"模型": "x", "a\r\nSet-Cookie: b": "x", "y" * 10**4: "x"}
    body = {"model": "mini", "prompt": "x", "max_tokens": 1} | odd
    found = httpx2.post(f"{address}/v1/completions", json=body, headers=headers)
    assert found.status_code == 200
    assert "\\u6a21\\u578b" in found.headers["x-openglm-ignored"]
    assert "set-cookie" not in found.headers
    form = {"purpose": "batch", "模型": "x", "expires_after[seconds]": "60"}
    sent = {"file": ("a", b"x")}
    found = httpx2.post(f"{address}/v1/files", data=form, files=sent, headers=headers)
    assert found.headers["x-openglm-ignored"] == "expires_after[seconds], \\u6a21\\u578b"


def test_a_batch(client):
    """An answer is missing, twice, another's, or another than the same call gives at once."""
    lines = [
        chat(0),
        chat(1, model="glm-99"),
        chat(2, temperature=3),
        chat(3, url="/v4/chat/completions", request_id="mine"),
        chat(4, url="/v4/chat/completions", model="glm-99"),
        chat(5, stream=True),
        chat(6, n=2),
    ]
    batch = begin(client, lines, metadata={"night": "7"})
    assert batch.status == "validating"
    batch = ended(client, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"night": "7"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (7, 3, 4)
    assert batch.completed_at >= batch.finalizing_at >= batch.in_progress_at >= batch.created_at
    good = {line["custom_id"]: line for line in answers(client, batch.output_file_id)}
    assert list(good) == ["c0", "c3", "c6"]
    for line in good.values():
        assert line["error"] is None
        assert line["response"]["status_code"] == 200
        for choice in line["response"]["body"]["choices"]:
            assert choice["message"]["content"] == "Hello, 你好👋!"
    assert good["c3"]["response"]["body"]["request_id"] == "mine"
    assert len(good["c6"]["response"]["body"]["choices"]) == 2
    bad = {line["custom_id"]: line["response"] for line in answers(client, batch.error_file_id)}
    assert {name: found["status_code"] for name, found in bad.items()} == {
        "c1": 404, "c2": 400, "c4": 400, "c5": 400,
    }  # fmt: skip
    assert bad["c1"]["body"]["error"]["code"] == "model_not_found"
    assert bad["c4"]["body"]["error"]["code"] == "1211"
    assert bad["c2"]["body"]["error"]["param"] == "temperature"
    file = client.files.retrieve(batch.output_file_id)
    assert file.purpose == "batch_output"
    assert client.files.retrieve(batch.input_file_id).purpose == "batch"


def test_a_batch_of_texts(client):
    """Texts are continued otherwise than at /v1/completions."""
    body = {"model": "mini", "prompt": "The river", "max_tokens": 9, "temperature": 0}
    line = {"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": body}
    batch = ended(client, begin(client, [line], "/v1/completions"))
    (found,) = answers(client, batch.output_file_id)
    expected = client.completions.create(**body).choices[0].text
    assert found["response"]["body"]["choices"][0]["text"] == expected
    assert batch.error_file_id is None


def test_a_file_that_is_no_batch(client):
    """A batch begins although lines of it cannot be answered; or nobody says which."""
    batch = ended(client, begin(client, [chat(0), {"custom_id": "x"}, chat(0)]))
    assert batch.status == "failed"
    assert [(error.line, error.param) for error in batch.errors.data] == [
        (2, "body"),
        (3, "custom_id"),
    ]
    assert batch.output_file_id is None
    text = upload(client, [chat(0)], "fine-tune").id
    for more, named in (
        ({"input_file_id": text}, "purpose"),
        ({"endpoint": "/v1/chat"}, "endpoint"),
        ({"completion_window": "1h"}, "completion_window"),
        ({"metadata": {"x": "y" * 513}}, "metadata"),
    ):
        asked = {"input_file_id": upload(client, [chat(0)]).id, "completion_window": "24h"}
        asked |= {"endpoint": "/v1/chat/completions"} | more
        with pytest.raises(openai.BadRequestError, match=named):
            client.batches.create(**asked)
    unknown = {"input_file_id": f"file-{'0' * 32}", "completion_window": "24h"}
    with pytest.raises(openai.NotFoundError):
        client.batches.create(endpoint="/v1/chat/completions", **unknown)


def running(address, key):
    """Requests that the engines have."""
    found = httpx2.get(f"{address}/metrics", headers={"Authorization": f"Bearer {key}"})
    return sum(
        float(line.split()[-1])
        for line in found.text.splitlines()
        if line.startswith(("openglm_num_requests_running{", "openglm_num_requests_waiting{"))
    )


def test_cancelling(client, served):
    """A cancelled batch goes on, or forgets what it had answered."""
    lines = [chat(0), *(chat(number, "long") for number in range(1, 30))]
    batch = begin(client, lines)
    while client.batches.retrieve(batch.id).request_counts.completed < 1:
        time.sleep(0.02)
    assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(client, batch)
    assert batch.status == "cancelled"
    assert batch.cancelled_at >= batch.cancelling_at
    assert running(*served) == 0
    done = [line["custom_id"] for line in answers(client, batch.output_file_id)]
    rest = answers(client, batch.error_file_id)
    assert sorted(done + [line["custom_id"] for line in rest]) == sorted(
        line["custom_id"] for line in lines
    )
    assert {line["error"]["code"] for line in rest} == {"batch_cancelled"}
    assert batch.request_counts.completed == len(done)
    with pytest.raises(openai.BadRequestError, match="it is cancelled"):
        client.batches.cancel(batch.id)


def test_a_batch_that_runs_out_of_time(client, monkeypatch):
    """A batch that nobody waits for any more goes on for ever."""
    monkeypatch.setattr("openglm.serve.background.batches.WINDOW_SECONDS", 0)
    batch = ended(client, begin(client, [chat(0), chat(1)]))
    assert batch.status == "expired"
    assert batch.expired_at is not None
    rest = answers(client, batch.error_file_id)
    assert [line["error"]["code"] for line in rest] == ["batch_expired"] * 2
    assert batch.output_file_id is None
    assert batch.request_counts.failed == 2


def test_pages_of_batches(client):
    """A batch is left out of the list, or a list repeats one."""
    every = [begin(client, [chat(0)]).id for _ in range(3)]
    assert [one.id for one in client.batches.list(limit=2)][:3] == every[::-1]
    for batch_id in every:
        ended(client, client.batches.retrieve(batch_id))


def test_people_go_first(client, served):
    """Somebody who waits for an answer waits for a batch."""
    batch = begin(client, [chat(number, "long") for number in range(24)])
    while running(*served) < 8:
        time.sleep(0.02)
    ask = [{"role": "user", "content": "hi"}]
    done = client.chat.completions.create(model="glm-4", messages=ask)
    assert done.choices[0].message.content == "Hello, 你好👋!"
    assert client.batches.retrieve(batch.id).request_counts.completed < 24
    client.batches.cancel(batch.id)
    ended(client, batch)


# A crash

CODE = "from openglm.cli.main import main; main()"


@contextmanager
def glm_serve(home, port):
    """A server process; yields it and what it said until it answered."""
    environment = os.environ | {"OPENGLM_HOME": str(home)}
    words = [sys.executable, "-c", CODE, "serve", "mini", "--port", str(port)]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            said = server.stdout.readline()
            end = time.monotonic() + 60
            while True:
                try:
                    httpx2.get(f"http://127.0.0.1:{port}/health")
                    break
                except httpx2.TransportError:
                    assert time.monotonic() < end
                    assert server.poll() is None
                    time.sleep(0.1)
            yield server, said
        finally:
            server.kill()


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def stored(home):
    """What a batch in work has so far: number -> answer."""
    with closing(sqlite3.connect(home / "serve.db")) as database:
        return dict(database.execute("select line, text from answers"))


def test_a_crash(tmp_path):
    """A batch that a crash interrupts is lost, or has lines without an answer, or with two."""
    keys = [sys.executable, "-c", CODE, "keys", "create", "test"]
    environment = os.environ | {"OPENGLM_HOME": str(tmp_path)}
    made = subprocess.run(keys, env=environment, capture_output=True, text=True, check=True)
    key = next(word for word in made.stdout.split() if word.count(".") == 1 and len(word) > 60)
    body = {"model": "mini", "prompt": "The river", "max_tokens": 40, "min_tokens": 40}
    lines = [
        {"custom_id": f"c{seed}", "method": "POST", "url": "/v1/completions",
         "body": body | {"seed": seed}}
        for seed in range(40)
    ]  # fmt: skip
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with glm_serve(tmp_path, port) as (server, _), connected(address, key) as client:
        batch = begin(client, lines, "/v1/completions")
        end = time.monotonic() + 60
        while len(stored(tmp_path)) < 5:
            assert time.monotonic() < end
            time.sleep(0.02)
        server.send_signal(signal.SIGKILL)
        server.wait()
    before = stored(tmp_path)
    assert 5 <= len(before) < 40
    with glm_serve(tmp_path, port), connected(address, key) as client:
        batch = ended(client, client.batches.retrieve(batch.id), 120)
        found = client.files.content(batch.output_file_id).text.splitlines()
        texts = {line["custom_id"]: line for line in map(json.loads, found)}
        mine = client.files.list(purpose="batch_output")
        assert [file.id for file in mine] == [batch.output_file_id]
    assert batch.status == "completed"
    assert batch.request_counts.completed == 40
    assert [json.loads(line)["custom_id"] for line in found] == [f"c{i}" for i in range(40)]
    assert {number: found[number - 1] for number in before} == before  # kept, not done again
    model = openglm.load()
    for seed in (0, 39):
        expected = model.generate("The river", max_tokens=40, min_tokens=40, seed=seed).text
        assert texts[f"c{seed}"]["response"]["body"]["choices"][0]["text"] == expected
    assert stored(tmp_path) == {}
