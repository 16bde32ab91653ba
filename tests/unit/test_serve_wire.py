"""How a stream of events is sent: with signs of life, and to its end whoever ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.serve import wire
from openglm.serve.wire import PING, TEXT, EventResponse, Mould, event

SCOPE = {"type": "http", "asgi": {"spec_version": "2.3"}}


class Client:
    """The other side of a connection."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.is_gone = asyncio.Event()

    async def send(self, message: dict[str, object]) -> None:
        if message["type"] == "http.response.body":
            self.bodies.append(message["body"])
            assert message["more_body"] == bool(message["body"])

    async def receive(self) -> dict[str, object]:
        await self.is_gone.wait()
        return {"type": "http.disconnect"}


def test_a_silent_stream_shows_that_it_lives(monkeypatch):
    """A proxy closes the connection of a model that reads a long prompt."""
    monkeypatch.setattr(wire, "PING_SECONDS", 0.02)

    async def events() -> AsyncGenerator[bytes, None]:
        yield b"first"
        await asyncio.sleep(0.2)
        yield b"last"

    async def run() -> list[bytes]:
        client = Client()
        await EventResponse(events(), {}, lambda: None)(SCOPE, client.receive, client.send)
        said = len(client.bodies)
        await asyncio.sleep(0.1)
        assert len(client.bodies) == said, "a sign of life behind the end"
        return client.bodies

    first, *pings, last, end = asyncio.run(run())
    assert (first, last, end) == (b"first", b"last", b"")
    assert pings
    assert set(pings) == {PING}


def test_a_client_that_leaves_closes_the_stream():
    """What makes the events goes on for nobody, or the call keeps its place."""
    order: list[str] = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            yield b"first"
            await asyncio.sleep(3600)
        finally:
            order.append("closed")

    async def run() -> None:
        client = Client()
        response = EventResponse(events(), {}, lambda: order.append("ended"))
        running = asyncio.create_task(response(SCOPE, client.receive, client.send))
        while not client.bodies:
            await asyncio.sleep(0)
        client.is_gone.set()
        await asyncio.wait_for(running, 5)
        assert client.bodies == [b"first"]

    asyncio.run(run())
    assert order == ["closed", "ended"]


def test_a_mould_writes_what_the_event_would_be():
    """The texts of a stream are not what its other events are, or a text can end its event."""

    def value(text: str) -> dict[str, object]:
        return {"id": "x", "choices": [{"index": 0, "text": text, "logprobs": None}], "n": 1.5}

    mould = Mould(value(TEXT))
    for text in ("", " river", '"\\\n\r\x00\x85\u2028', "中😀", "%s {text}", "}]}\n\n"):
        assert mould(text) == event(value(text))
