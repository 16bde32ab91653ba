"""How long a connection may be open on which nothing is asked, and how many there may be."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

import h11

from openglm.serve import burst, connection
from openglm.serve.burst import Burst
from openglm.serve.connection import Crowding, Framing, most_connections
from openglm.serve.server import Server, bind

LIMIT_SECONDS = 0.15
REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
WITH_BODY = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n"


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    """Answers, at /slow with half the answer long after the limit; reads no body."""
    if scope["type"] != "http":
        return
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"o", "more_body": True})
    if scope["path"] == "/slow":
        await asyncio.sleep(3 * LIMIT_SECONDS)
    await send({"type": "http.response.body", "body": b"k"})


@contextmanager
def _serving() -> Iterator[tuple[str, int]]:
    """The address of a server in a thread."""
    with bind("127.0.0.1", 0) as listener:
        server = Server(_answer, 1.0)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            yield listener.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    monkeypatch.setattr("openglm.serve.connection.HEADER_SECONDS", LIMIT_SECONDS)
    with _serving() as found:
        yield found


def _read(plug: socket.socket, end: bytes = b"ok") -> bytes:
    """What comes until the end of an answer, or of the connection."""
    found = b""
    while not found.endswith(end) and (piece := plug.recv(1)):
        found += piece
    return found


def _ask_slowly(plug: socket.socket) -> None:
    """Has a request in work on a connection."""
    plug.sendall(REQUEST.replace(b"/ ", b"/slow "))
    assert _read(plug, b"\r\n\r\no")


def _is_answered(address: tuple[str, int]) -> bool:
    """Whether a new connection is."""
    with closing(socket.create_connection(address, timeout=10)) as plug:
        try:
            plug.sendall(REQUEST)
            return _read(plug).endswith(b"ok")
        except ConnectionError:
            return False


def test_who_asks_nothing_is_let_go(address: tuple[str, int]) -> None:
    """Somebody without a key holds connections for ever, until nobody else gets one."""
    with ExitStack() as open_:

        def plug(*said: bytes) -> socket.socket:
            found = open_.enter_context(socket.create_connection(address, timeout=10))
            for piece in said:
                found.sendall(piece)
                assert _read(found).endswith(b"ok")
            return found

        begun = time.monotonic()
        silent = [plug()]
        slow = [plug(), plug(REQUEST), plug(WITH_BODY)]  # first headers, next headers, a body
        while slow:
            assert time.monotonic() < begun + 10, "a connection is still open"
            time.sleep(0.02)
            for one in slow[:]:
                try:
                    one.sendall(b"x")
                    one.settimeout(0.001)
                    if not one.recv(1):
                        slow.remove(one)
                except TimeoutError:
                    one.settimeout(10)
                except ConnectionError:
                    slow.remove(one)
        assert silent[0].recv(1) == b""
        assert time.monotonic() - begun >= LIMIT_SECONDS


def test_who_asks_is_not(address: tuple[str, int]) -> None:
    """A long answer is cut, or the next request on a connection."""
    with closing(socket.create_connection(address, timeout=10)) as plug:
        plug.sendall(REQUEST[:10])
        time.sleep(LIMIT_SECONDS / 4)
        plug.sendall(REQUEST[10:])
        assert _read(plug).endswith(b"ok")
        time.sleep(LIMIT_SECONDS * 1.5)  # idle: for that there is another limit
        plug.sendall(REQUEST.replace(b"/ ", b"/slow ") + REQUEST[:5])
        assert _read(plug).endswith(b"ok")
        plug.sendall(REQUEST[5:])
        assert _read(plug).endswith(b"ok")


def test_more_connections_than_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections take all the files that the process may have open, and nothing works."""
    monkeypatch.setattr("openglm.serve.connection.MOST_CONNECTIONS", 2)
    with _serving() as address, ExitStack() as open_:
        plugs = [
            open_.enter_context(socket.create_connection(address, timeout=10)) for _ in range(2)
        ]
        for plug in plugs:
            _ask_slowly(plug)
        assert not _is_answered(address)
        for plug in plugs:
            assert _read(plug, b"k") == b"k"


def test_who_only_holds_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody without a key, who asks once and stays, keeps others out."""
    monkeypatch.setattr("openglm.serve.connection.MOST_CONNECTIONS", 3)
    with _serving() as address, ExitStack() as open_:
        silent, asked, busy = (
            open_.enter_context(socket.create_connection(address, timeout=10)) for _ in range(3)
        )
        asked.sendall(REQUEST)
        assert _read(asked).endswith(b"ok")
        _ask_slowly(busy)
        others = [open_.enter_context(socket.create_connection(address)) for _ in range(2)]
        for plug in others:
            plug.sendall(REQUEST)
            assert _read(plug).endswith(b"ok")
        for plug in (silent, asked):
            with suppress(ConnectionError):
                assert plug.recv(1) == b""
        assert _read(busy, b"k") == b"k"


UPGRADE = REQUEST[:-2] + (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def test_who_asks_for_a_websocket(address: tuple[str, int]) -> None:
    """A connection that changes over is never forgotten, and others are closed in its place."""
    pytest.importorskip("websockets", reason="uvicorn changes over with it only")
    with socket.create_connection(address, timeout=10) as plug:
        plug.sendall(UPGRADE)
        assert _read(plug).startswith(b"HTTP/1.1 200")
    deadline = time.monotonic() + 10
    while connection._idle and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not connection._idle


def test_calls_that_take_too_long_are_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that was told to end lives on until its longest call is answered."""
    monkeypatch.setattr("openglm.serve.server.BREAK_SECONDS", LIMIT_SECONDS)

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await asyncio.sleep(60)

    with bind("127.0.0.1", 0) as listener:
        server = Server(answer, LIMIT_SECONDS)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        with socket.create_connection(listener.getsockname(), timeout=10) as plug:
            plug.sendall(REQUEST)
            while not server.draining.num_calls:
                time.sleep(0.01)
            loop = next(iter(server.server_state.connections)).loop
            loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)
            thread.join(10)
            assert not thread.is_alive()


def test_a_crowd_does_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever opens connections writes a line into the log with each, until the disk is full."""
    crowding = Crowding()
    for _ in range(3):
        crowding.note(7)
    assert caplog.messages == ["1 idle connections closed to make room: 7 are open"]
    monkeypatch.setattr("openglm.serve.connection.SECONDS_BETWEEN", 0.0)
    crowding.note(8)
    assert caplog.messages[1:] == ["3 idle connections closed to make room: 8 are open"]


def test_files_bound_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a process may have 1,024 files, the bound is never reached, and the database fails."""
    resource = pytest.importorskip("resource", reason="not on Windows")
    for files, most in ((1024, 768), (1 << 20, 4096), (resource.RLIM_INFINITY, 4096)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert most_connections() == most


class _Transport:
    """Notes what is done to it."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("closed")

    def is_closing(self) -> bool:
        return "closed" in self.done


def test_what_one_turn_writes_is_sent_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token costs a call of the system, bytes change places, or the last are lost."""
    monkeypatch.setattr(burst, "MOST_BYTES", 10)

    async def run() -> list[bytes | str]:
        transport = _Transport()
        burst: Any = Burst(transport)  # type: ignore[arg-type]
        burst.write(b"one ")
        burst.write(b"two ")
        assert transport.done == []
        await asyncio.sleep(0)
        burst.write(b"three ")
        await asyncio.sleep(0)
        assert transport.done == [b"one two ", b"three "]
        burst.write(b"more than is kept ")
        assert transport.done[2:] == [b"more than is kept "]
        burst.write(b"the end")
        burst.close()
        assert burst.is_closing()
        await asyncio.sleep(0)
        return transport.done[3:]

    assert asyncio.run(run()) == [b"the end", "closed"]


def test_pieces_are_framed_as_by_h11() -> None:
    """A stream is not what h11 would send, or goes on behind its end."""

    def sent(conn: h11.Connection, request: bytes) -> list[bytes]:
        conn.receive_data(request)
        assert [type(conn.next_event()) for _ in range(2)] == [h11.Request, h11.EndOfMessage]
        data = [h11.Data(data=piece) for piece in (b"one", b"", b"x" * 1000, b"two")]
        found = [
            bytes(conn.send(event) or b"")
            for event in (h11.Response(status_code=200, headers=[]), *data, h11.EndOfMessage())
        ]
        with pytest.raises(h11.LocalProtocolError):
            conn.send(data[0])
        return found

    for version in (b"1.0", b"1.1"):
        request = REQUEST.replace(b"1.1", version)
        expected = sent(h11.Connection(h11.SERVER), request)
        assert sent(Framing(h11.SERVER), request) == expected
