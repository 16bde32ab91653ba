"""A server to measure, as a process of its own, and clients that cost it as little as can be.

Server and clients share the cores of one machine, so a client notes when bytes come and looks at
them at the end. Requests fix how many tokens are written (`min_tokens`); the last event says how
many were, and must agree.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import quantiles
from time import perf_counter
from typing import Any

from openglm.serve.database import Database
from openglm.serve.keys import KeyStore

NO_LIMIT = 10**6
START_SECONDS = 120.0
COMPLETION_TOKENS = re.compile(rb'"completion_tokens":(\d+)')


def body(number: int, tokens: int, **sampling: Any) -> dict[str, Any]:
    """A call of /v1/completions that writes so many tokens."""
    lengths = {"max_tokens": tokens, "min_tokens": tokens, "seed": number}
    prompt = f"{number} The river"
    return {"model": "mini", "prompt": prompt, "temperature": 0.8, **lengths, **sampling}


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs.

    Args:
        port: on 127.0.0.1.
        key: without limits.
        pid: of its process.
    """

    port: int
    key: str
    pid: int

    def request(self, asked: dict[str, Any]) -> bytes:
        """The bytes of a streaming call, on a connection of its own."""
        options = {"stream": True, "stream_options": {"include_usage": True}}
        content = json.dumps(asked | options).encode()
        head = (
            "POST /v1/completions HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {self.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            "Connection: close",
        )
        return "\r\n".join([*head, "", ""]).encode() + content

    def get(self, path: str) -> str:
        """What a path answers."""
        headers = {"Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            text: str = response.read().decode()
        return text

    @property
    def num_in_work(self) -> int:
        """Requests that the engine has, running or waiting."""
        names = ("openglm_num_requests_running{", "openglm_num_requests_waiting{")
        lines = self.get("/metrics").splitlines()
        return round(sum(float(line.split()[-1]) for line in lines if line.startswith(names)))

    @property
    def resident_bytes(self) -> int:
        """Memory of its process."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * resource.getpagesize()

    @property
    def loop_seconds(self) -> float:
        """Processor time of its first thread, the event loop: all that HTTP costs."""
        used_ns = Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]
        return int(used_ns) / 1e9


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """`glm serve mini` on a free port, with a user folder of its own, and `options`."""
    with tempfile.TemporaryDirectory() as folder:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        database = Database(f"sqlite:///{folder}/serve.db")
        keys = KeyStore(database, Path(folder) / "serve.key")
        key = keys.create("benchmark", requests_per_minute=NO_LIMIT, concurrency=NO_LIMIT)
        database.close()
        code = "from openglm.cli.main import main; main()"
        words = [sys.executable, "-c", code, "serve", "mini", "--port", str(port), *options]
        home = os.environ | {"OPENGLM_HOME": folder}
        with subprocess.Popen(words, env=home, stdout=subprocess.DEVNULL) as process:
            try:
                server = Server(port, key, process.pid)
                _wait(server)
                yield server
            finally:
                process.terminate()


def _wait(server: Server) -> None:
    """Until it answers."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            server.get("/ready")
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


@dataclass(slots=True, eq=False)
class Stream(asyncio.Protocol):
    """One call of a client.

    Args:
        request: its bytes.

    Attributes:
        begun: when they were sent.
        arrivals: when events came; several may come together.
        content: all bytes of the answer.
        answered: when its first bytes came.
        has_answer: is set then, or at the end.
        has_event: is set at the first event, or at the end.
        has_ended: is set when the connection ends.
        transport: of the connection.
    """

    request: bytes
    begun: float = 0.0
    answered: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    content: bytearray = field(default_factory=bytearray)
    has_answer: asyncio.Event = field(default_factory=asyncio.Event)
    has_event: asyncio.Event = field(default_factory=asyncio.Event)
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport = field(init=False)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.begun = perf_counter()
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = perf_counter()
        if not self.content:
            self.answered = now
            self.has_answer.set()
        self.content += data
        if b"data: " in data:
            self.arrivals.append(now)
            self.has_event.set()

    def connection_lost(self, error: Exception | None) -> None:
        for news in (self.has_answer, self.has_event, self.has_ended):
            news.set()

    @property
    def status(self) -> int:
        """Of HTTP; 0 if there was no answer."""
        return int(self.content[9:12] or 0)

    @property
    def num_tokens(self) -> int:
        """That a whole answer says it has; 0 if it is not whole."""
        found = COMPLETION_TOKENS.findall(self.content)
        return int(found[-1]) if found and b"data: [DONE]" in self.content else 0

    def gaps(self, start: float = 0.0, end: float = float("inf")) -> list[float]:
        """Seconds from one arrival to the next, of those between two times."""
        return [b - a for a, b in pairwise(self.arrivals) if start <= a and b <= end]


async def begin(server: Server, asked: dict[str, Any]) -> Stream:
    """A call that was sent."""
    loop = asyncio.get_running_loop()
    request = server.request(asked)
    _, stream = await loop.create_connection(lambda: Stream(request), "127.0.0.1", server.port)
    return stream


async def whole(server: Server, every: Iterable[dict[str, Any]]) -> list[Stream]:
    """Calls that were sent together, when all are answered."""
    streams = await asyncio.gather(*(begin(server, asked) for asked in every))
    await asyncio.gather(*(stream.has_ended.wait() for stream in streams))
    return streams


def percentiles(values: list[float]) -> dict[str, float]:
    """The median, and what 99 of 100 stay below."""
    hundredths = quantiles(values, n=100, method="inclusive")
    return {"p50": hundredths[49], "p99": hundredths[98]}
