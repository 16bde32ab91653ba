"""A hundred clients that hang up in the middle of their streams."""

from __future__ import annotations

import asyncio
import json

import httpx2
import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

import openglm
from helpers_serve import serving

CLIENTS = 100
SECONDS = 30


async def hang_up(address: str, key: str, number: int) -> None:
    """Reads the first word of an answer and resets the connection."""
    host, port = address.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    body = {"model": "mini", "prompt": f"{number} The river", "max_tokens": 200, "stream": True}
    content = json.dumps(body | {"min_tokens": 200}).encode()
    head = (
        "POST /v1/completions HTTP/1.1",
        f"Host: {host}",
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        f"Content-Length: {len(content)}",
    )
    writer.write("\r\n".join([*head, "", ""]).encode() + content)
    await reader.readuntil(b"data: ")
    writer.transport.abort()


def in_work(client: httpx2.Client) -> float:
    names = ("openglm_num_requests_running{", "openglm_num_requests_waiting{")
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(names))


def test_who_leaves_leaves_nothing():
    """Requests run on for nobody, or the places of their key stay taken."""

    async def leave(address: str, key: str) -> None:
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(hang_up(address, key, number) for number in range(CLIENTS)))

    async def wait(client: httpx2.Client) -> None:
        async with asyncio.timeout(SECONDS):
            while in_work(client):
                await asyncio.sleep(0.02)

    with serving({"mini": openglm.load()}, concurrency=CLIENTS) as (address, key):
        headers = {"Authorization": f"Bearer {key}"}
        with httpx2.Client(base_url=address, headers=headers, timeout=60) as client:
            for _ in range(2):  # the second time, all places of the key are needed again
                asyncio.run(leave(address, key))
                asyncio.run(wait(client))
            body = {"model": "mini", "prompt": "The river", "max_tokens": 4}
            assert client.post("/v1/completions", json=body).status_code == 200
