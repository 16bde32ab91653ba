"""The OpenAPI document says what the server does: tried by schemathesis, and on real answers."""

from __future__ import annotations

import json
import subprocess
import sys

import httpx2
import pytest

import openglm
from helpers_serve import scripted, serving

pytest.importorskip("schemathesis")
jsonschema = pytest.importorskip("jsonschema_rs")  # which schemathesis brings
RUN = "from schemathesis.cli import schemathesis; schemathesis()"
NOT_CHECKED = "positive_data_acceptance"
"""No schema says which models are there, and what has room in their contexts."""
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
CHAT = {"model": "glm-4", "messages": [{"role": "user", "content": "hi"}]}
WRITE = {"model": "mini", "prompt": "The river", "max_tokens": 4}
CALLS = [
    ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required"}),
    ("/v1/chat/completions", CHAT | {"n": 2, "stream_options": {"include_usage": True}}),
    ("/v1/completions", WRITE | {"logprobs": 2, "echo": True}),
    ("/v1/completions", WRITE | {"stream_options": {"include_usage": True}}),
    ("/v1/fill", {"model": "mini", "text": "The [MASK] sat.", "max_tokens": 4, "logprobs": 1}),
    ("/api/paas/v4/chat/completions", CHAT | {"tools": [TOOL], "tool_choice": "required"}),
    ("/api/paas/v4/chat/completions", CHAT),
]


def script(conversation: str) -> str:
    return "\nHello, 你好👋!"


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    models = {"glm-4": scripted(tmp_path_factory.mktemp("glm4"), script), "mini": openglm.load()}
    with serving(models, legacy=True) as found:
        yield found


@pytest.fixture(scope="module")
def client(served):
    address, key = served
    headers = {"Authorization": f"Bearer {key}"}
    with httpx2.Client(base_url=address, headers=headers, timeout=60) as found:
        yield found


@pytest.fixture(scope="module")
def document(client):
    return client.get("/openapi.json").raise_for_status().json()


def attack(served, path, document, *options):
    """Runs schemathesis with a document against the server."""
    address, key = served
    path.write_text(json.dumps(document))
    fixed = ["--seed", "1", "--exclude-checks", NOT_CHECKED, "-H", f"Authorization: Bearer {key}"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, "run", path, "--url", address, *fixed, *options],
        cwd=path.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-1000:]


def test_whatever_is_asked(served, document, tmp_path):
    """Some request gets a 5xx, a status or an answer that the document has not, or needs no key."""
    attack(served, tmp_path / "openapi.json", document, "-n", "5")


def test_what_can_be_answered(served, document, tmp_path):
    """As above, with models that are there and few tokens: else most calls end at their name."""
    narrowed = json.loads(json.dumps(document))
    for name, schema in narrowed["components"]["schemas"].items():
        fields = schema.get("properties", {})
        if name.endswith("Request") and "model" in fields:
            fields["model"] = {"enum": ["glm-4", "mini"]}
        if name.endswith("Request") and "max_tokens" in fields:
            schema["required"] = [*schema["required"], "max_tokens"]
            fields["max_tokens"] = {"type": "integer", "minimum": 1, "maximum": 4}
    only = ("--mode", "positive", "--phases", "fuzzing", "-n", "10")
    attack(served, tmp_path / "openapi.json", narrowed, *only)


def closed(schema):
    """A schema whose objects have the fields that it names, and no others."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(part) for name, part in schema.items()}
    return {"additionalProperties": False} | found if "properties" in schema else found


def content(document, path, method="post"):
    """What a path answers, by content type."""
    return document["paths"][path][method]["responses"]["200"]["content"]


@pytest.mark.parametrize(("path", "body"), CALLS, ids=lambda value: str(value)[:60])
def test_answers(client, document, path, body):
    """An answer, or a piece of a stream, has a field that the document does not tell of."""
    parts = {"components": closed(document["components"])}
    kinds = content(document, path)
    whole = client.post(path, json=body).raise_for_status().json()
    jsonschema.validate(closed(kinds["application/json"]["schema"]) | parts, whole)
    item = kinds["text/event-stream"]["itemSchema"]["properties"]["data"]
    streamed = client.post(path, json=body | {"stream": True}).raise_for_status().text
    *events, last = streamed.removesuffix("\n\n").split("\n\n")
    assert last == "data: [DONE]"
    assert len(events) > 1
    for event in events:
        chunk = json.loads(event.removeprefix("data: "))
        jsonschema.validate(closed(item["contentSchema"]) | parts, chunk)


def test_methods_of_a_path(client):
    """A client is not told that a path has other methods, or only of some of them."""
    for path in ("/v1/files", "/api/paas/v4/files"):
        found = client.put(path)
        assert (found.status_code, found.headers["allow"]) == (405, "GET, POST")
