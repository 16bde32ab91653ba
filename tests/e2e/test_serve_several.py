"""Several models on one server: what each answers, and how an admin loads and unloads them."""

from __future__ import annotations

import asyncio
import json
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

import openglm
from helpers_serve import scripted, serving
from openglm.language_model import LanguageModel
from openglm.serve.errors import ServeError
from openglm.serve.known import Known

SMALL = {"memory_bytes": 1 << 26}
GREEDY = {"temperature": 0, "max_tokens": 48, "min_tokens": 48}
Chunks = list[tuple[str, str]]
"""Name of a model and what it wrote, as it came."""


class Reader:
    """Reads mini, and remembers what it gave without keeping it."""

    def __init__(self) -> None:
        self.given: list[weakref.ref[Any]] = []

    def __call__(self) -> LanguageModel:
        model = openglm.load("mini", device="cpu")
        self.given.append(weakref.ref(model.network))
        return model


@pytest.fixture
def spare() -> Known:
    """A model that is known, and not loaded."""
    return Known(name="spare", read=Reader(), engine=SMALL, loads_at_start=False)


@pytest.fixture
def client(tmp_path, spare) -> Iterator[httpx2.Client]:
    """An admin of a server with a chat model, which writes long answers, and a spare one."""
    models = {"chat": scripted(tmp_path, lambda conversation: "\n" + "word " * 200), "spare": spare}
    aliases = {"gpt-4o": "spare"}
    with (
        serving(models, role="admin", aliases=aliases, legacy=True) as (address, key),
        httpx2.Client(
            base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60
        ) as found,
    ):
        yield found


def change(client: httpx2.Client, what: str, model: str = "spare") -> httpx2.Response:
    return client.post(f"/v1/models/{what}", json={"model": model})


def complete(client: httpx2.Client, model: str = "spare") -> httpx2.Response:
    body = {"model": model, "prompt": "The river", "max_tokens": 4, "temperature": 0}
    return client.post("/v1/completions", json=body)


def names(client: httpx2.Client, **query: str) -> list[str]:
    return [one["id"] for one in client.get("/v1/models", params=query).json()["data"]]


def test_two_models_answer_at_the_same_time() -> None:
    """Engines side by side disturb each other's numbers, or one waits for the other's last word."""
    models = {name: openglm.load("mini", device="cpu", dtype=name) for name in ("float32", "int4")}
    prompts = ["The river", "从前有一个", "Once upon a time", "The king said"]
    expected = {
        (name, prompt): model.generate(prompt, **GREEDY).text
        for name, model in models.items()
        for prompt in prompts
    }
    assert len({*expected.values()}) > len(prompts)  # or nobody could tell one from the other

    async def ask(client: httpx2.AsyncClient, name: str, prompt: str, chunks: Chunks) -> str:
        body = {"model": name, "prompt": prompt, "stream": True, **GREEDY}
        text = ""
        async with client.stream("POST", "/v1/completions", json=body) as found:
            async for line in found.aiter_lines():
                if line.startswith("data: {"):
                    piece = json.loads(line[6:])["choices"][0]["text"]
                    chunks.append((name, piece))
                    text += piece
        return text

    async def ask_all(address: str, key: str) -> tuple[dict[tuple[str, str], str], Chunks]:
        chunks: Chunks = []
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=120) as client:
            asking = [ask(client, *one, chunks) for one in expected]
            texts = await asyncio.gather(*asking)
        return dict(zip(expected, texts, strict=True)), chunks

    with serving(models, engine=SMALL) as served:
        for _ in range(2):
            texts, chunks = asyncio.run(ask_all(*served))
            assert texts == expected
            order = [name for name, _ in chunks]
            last = {name: len(order) - order[::-1].index(name) for name in models}
            assert max(map(order.index, models)) < min(last.values()) / 2


def test_a_model_comes_and_goes(client, spare) -> None:
    """A model that is loaded does not answer, is not listed or counted; or one that is gone is."""
    assert names(client) == ["chat"]
    assert names(client, status="any") == ["chat", "spare", "gpt-4o"]
    assert complete(client).status_code == 503
    assert "is not loaded" in complete(client).json()["error"]["message"]
    assert client.get("/v1/models/gpt-4o").json()["status"] == "unloaded"
    counted = 0
    for _ in range(2):
        loaded = change(client, "load", "gpt-4o")
        assert loaded.status_code == 200
        shown = {key: loaded.json()[key] for key in ("id", "root", "status")}
        assert shown == {"id": "gpt-4o", "root": "spare", "status": "loaded"}
        assert names(client) == ["chat", "spare", "gpt-4o"]
        assert complete(client).json()["choices"] == complete(client, "gpt-4o").json()["choices"]
        counted += 8
        text = client.get("/metrics").text
        assert f'openglm_generation_tokens_total{{model_name="spare"}} {counted}.0' in text
        assert 'vllm:num_requests_running{model_name="spare"} 0.0' in text
        assert spare.read.given[-1]() is not None
        gone = change(client, "unload").json()
        assert (gone["id"], gone["status"]) == ("spare", "unloaded")
        assert spare.read.given[-1]() is None
        assert names(client) == ["chat"]
        text = client.get("/metrics").text
        assert f'openglm_generation_tokens_total{{model_name="spare"}} {counted}.0' in text
        assert 'num_requests_running{model_name="spare"}' not in text
        assert client.get("/ready").json()["models"] == ["chat"]
    assert len(spare.read.given) == 2


def test_answers_end_before_their_model_goes(client) -> None:
    """A stream is cut by an unload, or one that begins behind it is taken."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stream": True}
    with client.stream("POST", "/v1/chat/completions", json=body) as response:
        lines = response.iter_lines()
        next(lines)
        gone: list[httpx2.Response] = []
        unloading = threading.Thread(target=lambda: gone.append(change(client, "unload", "chat")))
        unloading.start()
        while client.get("/v1/models/chat").json()["status"] == "loaded":
            pass
        refused = client.post("/v1/chat/completions", json=body)
        assert refused.status_code == 503
        assert "is being unloaded" in refused.json()["error"]["message"]
        v4 = client.post("/api/paas/v4/chat/completions", json=body)
        assert (v4.status_code, v4.json()["error"]["code"]) == (503, "1305")
        rest = [json.loads(line[6:])["choices"][0] for line in lines if line.startswith("data: {")]
    unloading.join(60)
    assert gone[0].json()["status"] == "unloaded"
    assert "".join(choice["delta"].get("content", "") for choice in rest) == ("word " * 200).strip()
    assert rest[-1]["finish_reason"] == "stop"
    assert client.post("/", json={"prompt": "x"}).status_code == 503  # asks the first model


def test_a_client_that_leaves_does_not_keep_a_model(client) -> None:
    """A call that was broken off counts as one in work, and the model never goes."""
    body = {"model": "chat", "messages": [{"role": "user", "content": "x"}]}
    with client.stream("POST", "/v1/chat/completions", json=body | {"stream": True}) as response:
        next(response.iter_lines())
    with pytest.raises(httpx2.TimeoutException):
        client.post("/v1/chat/completions", json=body, timeout=0.2)
    bad = client.post("/v1/chat/completions", json=body | {"tool_choice": "required"})
    assert bad.status_code == 400
    assert change(client, "unload", "chat").json()["status"] == "unloaded"


def test_only_admins_load(tmp_path, spare) -> None:
    """Anybody with a key fills the memory, or empties it."""
    with serving({"spare": spare}) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            for what in ("load", "unload"):
                refused = change(client, what)
                assert refused.status_code == 403
                assert refused.json()["error"]["code"] == "forbidden"
            assert httpx2.post(f"{address}/v1/models/load", json={}).status_code == 401
            assert client.post("/api/paas/v4/models/load", json={}).status_code in (404, 405)
    assert not spare.read.given


@pytest.mark.parametrize("name", ["other", "", "/etc", "../mini", "mini"])
def test_a_path_is_no_name(client, spare, name: str) -> None:
    """A client makes the server read a folder of its choice."""
    refused = change(client, "load", name)
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert not spare.read.given
    bad = client.post("/v1/models/load", json={})
    assert bad.json()["error"]["param"] == "model"
    ignored = client.post("/v1/models/unload", json={"model": "spare", "path": "/etc"})
    assert ignored.headers["X-OpenGLM-Ignored"] == "path"


def test_a_model_without_room(client, spare) -> None:
    """The admin does not learn that a model does not fit, or it is read all the same."""

    def check() -> None:
        raise ServeError("unavailable", "'spare' takes 9.0 GB of memory, and 1.0 GB are free")

    spare.check = check
    refused = change(client, "load")
    assert refused.status_code == 503
    assert "9.0 GB" in refused.json()["error"]["message"]
    assert client.get("/v1/models/spare").json()["status"] == "unloaded"
    assert not spare.read.given


def test_the_official_client_lists_them(client) -> None:
    """A model that is not loaded lacks a field that OpenAI's client needs."""
    told = {"base_url": f"{client.base_url}/v1", "api_key": client.headers["Authorization"][7:]}
    with openai.OpenAI(**told, _strict_response_validation=True) as official:
        assert [model.id for model in official.models.list()] == ["chat"]
        every = official.models.list(extra_query={"status": "any"})
        assert [model.id for model in every] == ["chat", "spare", "gpt-4o"]
        assert official.models.retrieve("gpt-4o").root == "spare"
