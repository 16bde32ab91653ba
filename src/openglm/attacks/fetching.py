"""Attacks with addresses that a server is to fetch: of pictures, files, schemas, call-backs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openglm.attacks.attack import unharmed
from openglm.attacks.target import Target

WAIT_SECONDS = 1.0
"""For a visit that comes after the answer."""
LONG_MEGABYTES = 8
FILES = ("file:///etc/passwd", "gopher://127.0.0.1:9/x", "data:text/plain;base64,cm9vdDo=",
         "data:image/png;base64," + "A" * (LONG_MEGABYTES << 20))  # fmt: skip
SHOWN = "root:x:"
"""Of the file above."""


def addresses(target: Target) -> Iterator[str]:
    """S1: every address leads to this program, in one of the ways to write it; nobody may come."""
    with _listener() as (port, visits):
        numbers = f"http://2130706433:{port}/x", f"http://0x7f000001:{port}/x"  # 127.0.0.1
        names = ("127.0.0.1", "localhost", "[::1]", "0", "[::ffff:127.0.0.1]", "127.1")
        ways = [f"http://{name}:{port}/x.png" for name in names]
        ways += [*numbers, f"http://example.org@127.0.0.1:{port}/x", *FILES]
        for address in ways:
            for what, path, fields in _places(target, address):
                found = target.ask(path, **fields)
                yield from unharmed(f"{what} {address[:60]}", found)
                if SHOWN in found.text:
                    yield f"{what} {address[:60]}: the answer shows a file"
            if visits:  # one is enough to know
                break
        time.sleep(WAIT_SECONDS)
        yield from visits


def _places(target: Target, address: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Calls with an address in a place where some server takes one."""
    for path in target.calls:
        for name in ("callback_url", "webhook", "file_url", "image_url", "url"):
            yield name, path, {name: address}
        if not path.endswith("chat/completions"):
            continue
        for part in (
            {"type": "image_url", "image_url": {"url": address}},
            {"type": "video_url", "video_url": {"url": address}},
            {"type": "input_audio", "input_audio": {"data": address, "format": "wav"}},
            {"type": "file", "file": {"file_data": address}},
        ):
            yield str(part["type"]), path, {"messages": [{"role": "user", "content": [part]}]}
        search = {"type": "web_search", "web_search": {"enable": True, "search_query": address}}
        yield "web_search", path, {"tools": [search]}


@contextmanager
def _listener() -> Iterator[tuple[int, list[str]]]:
    """A port of this machine that nobody should know, and who came."""
    visits: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        port: int = server.getsockname()[1]
        over = threading.Event()

        def listen() -> None:
            while not over.is_set():
                try:
                    visit, _ = server.accept()
                except TimeoutError:
                    continue
                with visit:
                    visit.settimeout(1.0)
                    line = visit.recv(200).split(b"\r\n")[0].decode(errors="replace")
                    visits.append(f"the server fetched an address for a stranger: {line!r}")

        thread = threading.Thread(target=listen)
        thread.start()
        try:
            yield port, visits
        finally:
            over.set()
            thread.join()
