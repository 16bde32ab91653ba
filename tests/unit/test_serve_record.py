"""The id that every answer carries, and the line in the log when it is over."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from fastapi import APIRouter, FastAPI, Request

from openglm.serve.body import BodyLimits
from openglm.serve.errors import ServeError
from openglm.serve.guard import Guard, GuardSettings
from openglm.serve.json_lines import JsonLines, json_lines
from openglm.serve.record import record_of
from openglm.serve.runner import Place
from openglm.serve.server import Draining
from openglm.serve.service import Call

FRESH = re.compile(r"req-[0-9a-f]{32}")


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[list[dict[str, Any]]]:
    """Fills with what the log of requests says, as JSON."""
    found: list[dict[str, Any]] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(self.format(record)))

    handler = Kept()
    handler.setFormatter(JsonLines())
    log = logging.getLogger("openglm.requests")
    log.addHandler(handler)
    with caplog.at_level(logging.INFO, "openglm.requests"):
        yield found
    log.removeHandler(handler)


async def _hello(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def _call(
    app: Any,
    *headers: tuple[str, str],
    path: str = "/v1/x",
    method: str = "POST",
    leaves: bool = False,
    reads: bool = True,
) -> tuple[int, dict[str, str]]:
    """Status and headers of one request, whose client may leave after its body, or read nothing."""
    sent: list[Any] = []
    body = [{"type": "http.request", "body": b"MARKER"}]

    async def receive() -> dict[str, Any]:
        if body:
            return body.pop()
        if not leaves:
            await asyncio.sleep(3600)
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if not reads:
            await asyncio.sleep(3600)

    every = [("host", "localhost"), *headers]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"q=MARKER",
        "headers": [(name.encode(), value.encode("latin-1")) for name, value in every],
    }
    asyncio.run(app(scope, receive, send))
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], answered


@pytest.mark.parametrize("own", ["a", "A.b_c-9", "x" * 64])
def test_the_clients_id_comes_back(own: str) -> None:
    """A client cannot find its request in the log of the server."""
    assert _call(Guard(_hello), ("x-request-id", own))[1]["x-request-id"] == own


@pytest.mark.parametrize(
    "own", ["", "x" * 65, "x" * 10_000, "a\nb", "a\n", "a\r\nSet-Cookie: b", "a b", "é", '"', "%0a"]
)
def test_hostile_ids_do_not(own: str, lines: list[dict[str, Any]]) -> None:
    """A client writes headers of answers, or lines into the log."""
    _, headers = _call(Guard(_hello), ("x-request-id", own))
    assert FRESH.fullmatch(headers["x-request-id"])
    assert [line["id"] for line in lines] == [headers["x-request-id"]]


def test_of_two_ids_none() -> None:
    """A proxy in front and this server could each note another."""
    two = ("x-request-id", "a"), ("x-request-id", "b")
    first, second = (_call(Guard(_hello), *two)[1]["x-request-id"] for _ in range(2))
    assert FRESH.fullmatch(first)
    assert first != second


def test_refusals_have_one() -> None:
    """Just what goes wrong cannot be found in the log."""
    own = ("x-request-id", "mine")
    tight = GuardSettings(body=BodyLimits(bytes=1), header_bytes=200)

    async def reads(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    for app, headers, status in (
        (_hello, [("host", "evil.example")], 403),
        (_hello, [("content-length", "99")], 413),
        (_hello, [("x", "y" * 200)], 431),
        (reads, [], 413),
    ):
        found = _call(Guard(app, tight), own, *headers)
        assert (found[0], found[1]["x-request-id"]) == (status, "mine")


def test_a_failure_has_one(lines: list[dict[str, Any]]) -> None:
    """What fails outside of the framework is answered by uvicorn, without id and headers."""
    sent: list[Any] = []

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("bug")

    async def nothing() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"x-request-id", b"mine")],
    }
    with pytest.raises(RuntimeError, match="bug"):  # uvicorn logs it
        asyncio.run(Guard(broken)(scope, nothing, send))
    assert sent[0]["status"] == 500
    assert (b"x-request-id", b"mine") in sent[0]["headers"]
    assert b"bug" not in sent[1]["body"]
    assert [line["status"] for line in lines] == [500]


def test_refusals_of_an_ending_server(lines: list[dict[str, Any]]) -> None:
    """What is refused while the server ends is in no log."""
    app = Draining(Guard(_hello))
    assert _call(app, ("x-request-id", "first"))[0] == 200
    app.has_begun = True
    status, headers = _call(app, ("x-request-id", "last"))
    assert (status, headers["x-request-id"]) == (503, "last")
    assert [(line["id"], line["status"]) for line in lines] == [("first", 200), ("last", 503)]


def test_a_line(lines: list[dict[str, Any]]) -> None:
    """The log lacks something, or has what a client said."""

    async def known(scope: Any, receive: Any, send: Any) -> None:
        record = record_of(scope)
        record.key_id, record.model = "0123", "mini"
        record.prompt_tokens, record.completion_tokens = 3, 4
        await receive()
        await asyncio.sleep(0.01)
        await _hello(scope, receive, send)

    _call(Guard(known), ("authorization", "Bearer 0123.MARKER"), ("x-request-id", "mine"))
    (line,) = lines
    assert line.pop("time").endswith("Z")
    assert 0.01 <= line.pop("seconds") < 5
    assert line == {
        "level": "info",
        "logger": "openglm.requests",
        "message": "POST /v1/x 200",
        "id": "mine",
        "key": "0123",
        "method": "POST",
        "path": "/v1/x",
        "status": 200,
        "model": "mini",
        "prompt_tokens": 3,
        "completion_tokens": 4,
    }


def test_paths(lines: list[dict[str, Any]]) -> None:
    """What stands in a path fills the log, splits its lines, or tells whose file was read."""
    app, router = FastAPI(openapi_url=None), APIRouter()

    @router.get("/files/{id}/content")
    async def _(id: str) -> None: ...

    @router.get("/models/{name:path}")
    async def _(name: str) -> None: ...

    app.include_router(router, prefix="/api/v4")
    guard = Guard(app)
    for path in ("/api/v4/files/7/content", "/api/v4/models/a/b", "/a\nb/é", "/" + "x" * 9999):
        _call(guard, path=path, method="GET")
    _call(guard, path="/api/v4/files/7/content", method="POST" * 99)
    paths = [line["path"] for line in lines]
    assert paths[:2] == ["/api/v4/files/{id}/content", "/api/v4/models/{name:path}"]
    assert paths[2:4] == [r"/a\nb/\xe9", "/" + "x" * 199]
    assert lines[4]["path"] == paths[0]
    assert len(lines[4]["method"]) == 20


def test_a_client_that_left(lines: list[dict[str, Any]]) -> None:
    """An answer that nobody read looks like one that was given."""

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()  # as the framework does meanwhile

    async def ends(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await _hello(scope, receive, send)
        await receive()

    async def is_left(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()
        await _hello(scope, receive, send)

    _call(Guard(ends), leaves=True)
    _call(Guard(is_left), leaves=True)
    _call(Guard(streams), leaves=True)
    _call(Guard(_hello, GuardSettings(read_seconds=0.01)), reads=False)
    assert [line["status"] for line in lines] == [200, 499, 499, 499]


def test_nothing_is_written_per_piece(lines: list[dict[str, Any]]) -> None:
    """Each token of a stream costs a line, or a look at the record."""
    looks = 0

    class Watched(dict[str, Any]):
        def __getitem__(self, name: str) -> Any:
            nonlocal looks
            looks += 1
            return super().__getitem__(name)

    async def streams(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send(Watched(type="http.response.body", body=b"x", more_body=True))
        await send({"type": "http.response.body", "body": b""})

    _call(Guard(streams))
    assert looks == 100  # its type, as ever
    assert [line["status"] for line in lines] == [200]


def test_without_a_reader_nothing_is_written(capfd: pytest.CaptureFixture[str]) -> None:
    """Programs that serve an app of their own get a log that they did not ask for."""
    assert _call(Guard(_hello))[1]["x-request-id"]
    assert capfd.readouterr().err == ""


def test_every_line_is_json(capfd: pytest.CaptureFixture[str]) -> None:
    """A program that reads the log stumbles over a traceback, or a line break."""
    root = logging.getLogger()
    handlers, log = root.handlers[:], logging.getLogger("openglm.requests")
    with json_lines():
        logging.getLogger("any.library").warning("two\nlines of %s", "\u2028é")
        try:
            raise ValueError("a\nb")
        except ValueError:
            logging.getLogger("openglm").exception("%(path)s failed", {"path": "/x", "id": "mine"})
        logging.getLogger("openglm").info("left out, as ever")
        _call(Guard(_hello))
    assert root.handlers == handlers
    assert log.level == logging.NOTSET
    with json_lines(of_requests=False):
        _call(Guard(_hello))
    text = capfd.readouterr().err
    assert text.isascii()
    warning, failure, request = map(json.loads, text.splitlines())
    assert (warning["level"], warning["message"]) == ("warning", "two\nlines of \u2028é")
    assert (failure["message"], failure["id"]) == ("/x failed", "mine")
    assert failure["traceback"].splitlines()[-2:] == ["ValueError: a", "b"]
    assert request["status"] == 200


def test_a_stream_that_fails_is_told_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The client is sent to a log that says nothing."""
    metrics = SimpleNamespace(clock=time.monotonic)
    scope = {"type": "http", "path": "/v1/fill", "headers": [], "method": "POST"}
    service: Any = SimpleNamespace(metrics=metrics)
    identity: Any = SimpleNamespace(key_id="a")
    call = Call(service=service, identity=identity, place=Place(), request=Request(scope))
    assert call.broken_off(RuntimeError("why")).kind == "internal"
    (record,) = caplog.records
    assert record.exc_info is not None
    assert "why" in str(record.exc_info[1])
    assert call.broken_off(ServeError("timeout", "late")).kind == "timeout"
    assert len(caplog.records) == 1
