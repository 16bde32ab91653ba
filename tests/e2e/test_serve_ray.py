"""`glm serve --ray`: two replicas behind one server, of which one is killed under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

pytest.importorskip("ray", reason="Ray is not installed (pip install '.[ray]')")

import openglm

CLIENTS, TOKENS = 24, 150
START_SECONDS = 400
MEMORY_GIB = "0.02"
"""Of keys and values: some of the requests have to wait."""


@contextmanager
def served(home) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The server's process, its address and a key."""
    code = "from openglm.cli.main import main; main()"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["serve", "--ray", "--replicas", "2", "--port", str(port), "--memory", MEMORY_GIB]
    environment = os.environ | {"OPENGLM_HOME": str(home)}
    run = [sys.executable, "-c", code]
    limits = ["--rpm", "100000", "--concurrency", "1000"]
    made = subprocess.run(
        [*run, "keys", "create", "test", *limits, "--json"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    key = json.loads(made.stdout)["key"]
    with subprocess.Popen([*run, *words], env=environment, text=True) as server:
        try:
            yield server, f"http://127.0.0.1:{port}", key
        finally:
            server.terminate()
            try:
                server.wait(60)
            finally:
                server.kill()


async def until_ready(client: httpx2.AsyncClient, server: subprocess.Popen[str]) -> None:
    async with asyncio.timeout(START_SECONDS):
        while True:
            assert server.poll() is None
            try:
                if (await client.get("/ready")).status_code == 200:
                    return
            except httpx2.TransportError:
                await asyncio.sleep(0.2)


def replicas(server: subprocess.Popen[str]) -> list[int]:
    """Processes below the server in which Ray runs a replica, as it calls them."""
    parents, found = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            state = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            parents[int(folder.name)] = int(state[1])
            if b"ServeReplica" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return [one for one in found if server.pid in ancestors(one, parents)]


def ancestors(process: int, parents: dict[int, int]) -> list[int]:
    found = []
    while process := parents.get(process, 0):
        found.append(process)
    return found


async def ask(client: httpx2.AsyncClient, prompt: str, begun: list[str]) -> str:
    """The text of a stream."""
    body = {"model": "mini", "prompt": prompt, "max_tokens": TOKENS, "min_tokens": TOKENS}
    text = ""
    async with client.stream(
        "POST", "/v1/completions", json=body | {"stream": True, "temperature": 0}
    ) as found:
        assert found.status_code == 200
        async for line in found.aiter_lines():
            if line.startswith("data: {"):
                if not text:
                    begun.append(prompt)
                text += json.loads(line[6:])["choices"][0]["text"]
    return text


def test_a_replica_is_killed_under_load(tmp_path):
    """Who has called before loses the answer, or reads a part of it twice."""
    model = openglm.load()
    prompts = [f"{number} The river" for number in range(CLIENTS)]
    expected = [
        model.generate(prompt, temperature=0, max_tokens=TOKENS, min_tokens=TOKENS).text
        for prompt in prompts
    ]

    async def load(server, address, key) -> list[str]:
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=address, headers=headers, timeout=120) as client:
            await until_ready(client, server)
            processes = replicas(server)
            assert len(processes) == 2
            begun: list[str] = []
            calls = [asyncio.create_task(ask(client, prompt, begun)) for prompt in prompts]
            while len(begun) < CLIENTS // 3:
                await asyncio.sleep(0.01)
            os.kill(processes[0], signal.SIGKILL)
            assert len(begun) < CLIENTS, "nothing was waiting: the test is too slow to tell"
            found = await asyncio.gather(*calls)
            again = await ask(client, prompts[0], begun)
            assert again == found[0]
            return found

    with served(tmp_path) as (server, address, key):
        assert asyncio.run(load(server, address, key)) == expected
