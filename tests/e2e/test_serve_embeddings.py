"""Vectors of texts over HTTP, as OpenAI's client and plain programs ask for them."""

from __future__ import annotations

import base64
import json
import time

import httpx2
import openai
import pytest
import torch

import openglm
from helpers_serve import serving

TEXTS = ["The river runs to the sea.", "白日依山尽，黄河入海流。"]
TOLERANCE = 1e-5
"""Vectors are the same whoever reads the texts; only the sums are in another order."""


@pytest.fixture(scope="module")
def model():
    return openglm.load()


@pytest.fixture(scope="module")
def served(model):
    with serving({"mini": model}, engine={"memory_bytes": 1 << 26}) as found:
        yield found


def post(served, path, body):
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    return httpx2.post(f"{address}{path}", json=body, headers=headers, timeout=60)


def test_the_official_client(client, model):
    """It gets other vectors than the model's, cannot read them, or in another order."""
    expected = model.embed(TEXTS)
    # It asks for base64 unless told otherwise, which its own strict types do not allow.
    lenient = openai.OpenAI(base_url=client.base_url, api_key=client.api_key)
    done = lenient.embeddings.create(model="mini", input=TEXTS)
    assert [one.index for one in done.data] == [0, 1]
    found = torch.tensor([one.embedding for one in done.data])
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    assert done.usage.total_tokens == done.usage.prompt_tokens > 10
    for text, vector in zip(TEXTS, expected, strict=True):
        alone = client.embeddings.create(model="mini", input=text, encoding_format="float")
        found = torch.tensor(alone.data[0].embedding)
        torch.testing.assert_close(found, vector, atol=TOLERANCE, rtol=0)


def test_base64_is_little_endian_float32(served, model):
    """A program that reads the bytes itself reads other numbers."""
    body = {"model": "mini", "input": TEXTS[0], "encoding_format": "base64"}
    raw = base64.b64decode(post(served, "/v1/embeddings", body).json()["data"][0]["embedding"])
    found = torch.frombuffer(bytearray(raw), dtype=torch.float32)
    torch.testing.assert_close(found, model.embed(TEXTS[:1])[0], atol=TOLERANCE, rtol=0)


def test_dimensions(client, model):
    """Vectors have another length than was asked for, or are not of length 1 any more."""
    (whole,) = model.embed(TEXTS[:1])
    asked = {"model": "mini", "input": TEXTS[0], "encoding_format": "float"}
    done = client.embeddings.create(**asked, dimensions=16)
    found = torch.tensor(done.data[0].embedding)
    expected = whole[:16] / whole[:16].norm()
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)
    with pytest.raises(openai.BadRequestError, match=f"have {len(whole)}"):
        client.embeddings.create(model="mini", input="a", dimensions=len(whole) + 1)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"input": []}, "1 to 2048"),
        ({"input": ["a"] * 2049}, "2049"),
        ({"input": ""}, "no tokens"),
        ({"input": ["a", ""]}, "no tokens"),
        ({"input": [1, 2, 3]}, "check_embedding_ctx_length"),
        ({"input": [[1, 2], [3]]}, "check_embedding_ctx_length"),
        ({"input": ["a", 3]}, "input"),
        ({"input": "x " * 1000}, "tokens"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_has_no_vector(served, more, named):
    """A text is cut, or ids of another vocabulary are read as words of this one."""
    answer = post(served, "/v1/embeddings", {"model": "mini", "input": "a"} | more)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_what_is_ignored_is_said(served):
    """A field that does nothing is taken without a word."""
    body = {"model": "mini", "input": "a", "user": "me", "dimensions": None}
    answer = post(served, "/v1/embeddings", body)
    assert answer.headers["x-openglm-ignored"] == "user"


def test_as_bigmodel_has_it(served, model):
    """BigModel's clients miss what was written (nothing), or get another vector."""
    body = {"model": "mini", "input": TEXTS, "request_id": 17.5}
    done = post(served, "/api/paas/v4/embeddings", body).json()
    found = torch.tensor([one["embedding"] for one in done["data"]])
    torch.testing.assert_close(found, model.embed(TEXTS), atol=TOLERANCE, rtol=0)
    assert done["usage"]["completion_tokens"] == 0
    assert done["request_id"] == "17.5"
    refused = post(served, "/api/paas/v4/embeddings", body | {"input": ["a"] * 65})
    assert refused.json()["error"]["code"] == "1214"


def test_tokens_are_counted(served):
    """Embeddings use nothing of what a key may use."""
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}

    def count():
        text = httpx2.get(f"{address}/metrics", headers=headers).text
        (line,) = [x for x in text.splitlines() if x.startswith("openglm_prompt_tokens_total")]
        return float(line.rsplit(" ", 1)[1])

    before = count()
    used = post(served, "/v1/embeddings", {"model": "mini", "input": TEXTS}).json()["usage"]
    assert count() == before + used["prompt_tokens"]


def test_later(client, model):
    """Vectors cannot be asked for in a batch, or come in the other dialect's object."""
    body = {"model": "mini", "input": TEXTS[0]}
    lines = [
        {"custom_id": url, "method": "POST", "url": url, "body": body}
        for url in ("/v1/embeddings", "/v4/embeddings")
    ]
    file = "\n".join(map(json.dumps, lines)).encode()
    source = client.files.create(file=("lines.jsonl", file), purpose="batch")
    asked = {"endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch = client.batches.create(input_file_id=source.id, **asked)
    for _ in range(600):
        if batch.status == "completed":
            break
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts.completed == 2
    for line in client.files.content(batch.output_file_id).text.splitlines():
        done = json.loads(line)["response"]["body"]
        found = torch.tensor(done["data"][0]["embedding"])
        torch.testing.assert_close(found, model.embed(TEXTS[:1])[0], atol=TOLERANCE, rtol=0)
        is_v4 = json.loads(line)["custom_id"].startswith("/v4")
        assert ("completion_tokens" in done["usage"]) is is_v4
