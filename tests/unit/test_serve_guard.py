"""What reaches a route of the server, and in what state."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.routing import Mount

from openglm.errors import ConfigError
from openglm.serve.access import check_routes, require_admin, require_key
from openglm.serve.body import BodyLimits
from openglm.serve.database import Database
from openglm.serve.guard import Guard, GuardSettings
from openglm.serve.identity import AuthenticationFailed, Identity, NotPermitted
from openglm.serve.keys import KeyStore
from openglm.serve.origin import KnownNames, host_of

App = Callable[..., Awaitable[None]]
HOST = ("host", "localhost:8000")


async def _echo_length(scope: Any, receive: Any, send: Any) -> None:
    """An application that reads the whole body and answers its length."""
    length, more = 0, True
    while more:
        message = await receive()
        length, more = length + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})


def _call(
    app: App,
    *headers: tuple[str, str],
    method: str = "POST",
    path: str = "/v1/chat/completions",
    body: list[bytes] | None = None,
    pause: float = 0.0,
    kind: str = "http",
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of one request; `pause` lies before each piece of its body."""
    chunks = list(body or [b""])
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if not chunks:
            return {"type": "http.disconnect"}
        await asyncio.sleep(pause)
        piece = chunks.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(chunks)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "scheme": "http",
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    asyncio.run(app(scope, receive, send))  # type: ignore[arg-type]
    if sent[0]["type"] == "websocket.close":
        return 403, {}, b""
    answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    assert [m["type"] for m in sent].count("http.response.start") == 1
    return sent[0]["status"], answered, b"".join(m.get("body", b"") for m in sent[1:])


NAMED = GuardSettings(KnownNames(["glm.example.org"], ["https://chat.example.org"]))


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST.:8000", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("192.168.1.5", 200),
        ("glm.example.org", 200),
        ("GLM.example.org:443", 200),
        ("evil.example", 403),
        ("evil.example:8000", 403),
        ("localhost.evil.example", 403),
        ("evil.example@localhost", 403),
        ("localhost:8000@evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("2130706433", 403),
        ("0x7f.1", 403),
        ("0177.0.0.1", 403),
        ("sub.glm.example.org", 403),
        ("localhost:port", 403),
        ("localhost/", 403),
        ("localhost evil.example", 403),
        ("", 403),
    ],
)
def test_host(host: str, status: int) -> None:
    """A name that is not ours lets any web page talk to a server on loopback (CVE-2024-28224)."""
    guard = Guard(_echo_length, NAMED)
    assert _call(guard, ("host", host))[0] == status
    if status == 403:
        assert _call(guard, ("host", host), kind="websocket")[0] == 403


def test_one_host() -> None:
    """With two names, or none, this check and a proxy's could each look at another."""
    guard = Guard(_echo_length)
    assert _call(guard)[0] == 403
    assert _call(guard, HOST, ("host", "evil.example"))[0] == 403


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://localhost:8000", 200),
        ("https://localhost:8000", 200),  # behind a proxy that ends TLS
        ("https://chat.example.org", 200),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://localhost:9000", 403),
        ("http://localhost", 403),
        ("https://chat.example.org.evil.example", 403),
        ("http://chat.example.org", 403),
        ("file://localhost:8000", 403),
        ("localhost:8000", 403),
        ("*", 403),
    ],
)
def test_origin(origin: str, status: int) -> None:
    """A foreign page may use the server, or one that was configured may not."""
    found, headers, _ = _call(Guard(_echo_length, NAMED), HOST, ("origin", origin))
    assert found == status
    allowed = headers.get("access-control-allow-origin")
    assert allowed == (origin if origin == "https://chat.example.org" else None)
    assert "access-control-allow-credentials" not in headers


def test_one_origin() -> None:
    """Of two, this check and the browser's could each look at another."""
    own = ("origin", "http://localhost:8000")
    assert _call(Guard(_echo_length, NAMED), HOST, own, own)[0] == 403


def test_preflight_of_a_configured_page() -> None:
    """The page is configured but its browser never sends the request with the key."""
    asked = (
        HOST,
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization,content-type"),
    )
    origin = ("origin", "https://chat.example.org")
    status, headers, _ = _call(Guard(_echo_length, NAMED), *asked, origin, method="OPTIONS")
    assert (status, headers["access-control-allow-origin"]) == (200, origin[1])
    assert _call(Guard(_echo_length), *asked, origin, method="OPTIONS")[0] == 403


@pytest.mark.parametrize("wrong", ["*", "*.example.org", "https://a.example", "a b", "", "a/b"])
def test_wrong_names_are_refused(wrong: str) -> None:
    """A configuration that would allow everything, or nothing without a word, is accepted."""
    with pytest.raises(ConfigError, match="is not"):
        KnownNames([wrong])
    if not wrong.startswith("https"):
        with pytest.raises(ConfigError, match="is not"):
            KnownNames([], [wrong])
    with pytest.raises(ConfigError, match="is not"):
        KnownNames([], ["https://a.example/path"])


def test_host_of_never_raises() -> None:
    """A `Host` header that the parser chokes on ends as status 500."""
    for odd in ("[::1", "[]", "a:99999999", "\x00", "é", "[v1.x]", "::1", "a:b:c", "//a", "%61"):
        host_of(odd)


LIMITS = GuardSettings(body=BodyLimits(bytes=10, file_bytes=20, seconds=5.0))


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/chat/completions", 10),
        ("/v1/files", 20),
        ("/api/paas/v4/files/abc", 20),
        ("/v1/files2", 10),
        ("//v1/files", 10),
        ("/x/v1/files", 10),
    ],
)
def test_size_of_a_body(path: str, limit: int) -> None:
    """A body above the limit reaches the app, whether its length is told or not."""
    guard = Guard(_echo_length, LIMITS)
    told = ("content-length", str(limit + 1))
    assert _call(guard, HOST, told, path=path, body=[b"x" * (limit + 1)])[0] == 413
    assert _call(guard, HOST, path=path, body=[b"x"] * (limit + 1))[0] == 413
    liar = ("content-length", "1")
    assert _call(guard, HOST, liar, path=path, body=[b"x" * limit, b"x"])[0] == 413
    status, _, body = _call(guard, HOST, path=path, body=[b"x"] * limit)
    assert (status, body) == (200, str(limit).encode())


@pytest.mark.parametrize("length", ["-1", "1e3", "", "٣", "9" * 19, "9" * 5000, "+5"])
def test_odd_lengths_are_refused(length: str) -> None:
    """A length that Python reads otherwise than the server in front, or not at all."""
    assert _call(Guard(_echo_length), HOST, ("content-length", length))[0] == 400


def test_refusal_wins_over_what_the_app_makes_of_it() -> None:
    """FastAPI takes the cut body for a parse error and answers 400, without the real reason."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def _(request: dict[str, Any]) -> None: ...

    status, headers, body = _call(
        Guard(app, LIMITS), HOST, ("content-type", "application/json"), body=[b"x"] * 11
    )
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["error"]["code"] == "413"


def test_endless_body_of_a_running_response_ends_it() -> None:
    """The response has begun: it can only be cut, not be answered a second time."""

    async def early(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await _echo_length(scope, receive, send)

    with pytest.raises(Exception, match="413"):
        _call(Guard(early, LIMITS), HOST, body=[b"x"] * 11)


def test_errors_of_the_app_are_not_hidden() -> None:
    """A bug looks like a refused body."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        _call(Guard(broken), HOST)


def test_a_slow_body_ends_and_a_slow_app_does_not() -> None:
    """A client that sends a byte now and then holds a place forever; or long answers are cut."""
    settings = GuardSettings(body=BodyLimits(seconds=0.05))
    assert _call(Guard(_echo_length, settings), HOST, body=[b"x"] * 1000, pause=0.01)[0] == 408

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asyncio.sleep(0.1)
        await receive()
        await asyncio.sleep(0.1)
        await _echo_length(scope, receive, send)

    assert _call(Guard(slow, settings), HOST, body=[b"x"] * 3)[0] == 200


def test_size_of_the_headers() -> None:
    """Headers or an address without limit fill the memory (CVE-2025-48956)."""
    guard = Guard(_echo_length)
    assert _call(guard, HOST, ("x", "y" * 16_000))[0] == 200
    assert _call(guard, HOST, ("x", "y" * 16_384))[0] == 431
    assert _call(guard, HOST, *[("x", "y")] * 4000)[0] == 431
    assert _call(guard, HOST, path="/" + "a" * 16_384)[0] == 431


def test_security_headers() -> None:
    """A response can be sniffed, framed or run scripts; or a page cannot set its own policy."""
    headers = _call(Guard(_echo_length), HOST)[1]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    refused = _call(Guard(_echo_length), ("host", "evil.example"))[1]
    assert refused["x-content-type-options"] == "nosniff"

    app = FastAPI()

    @app.get("/")
    def _() -> JSONResponse:
        return JSONResponse({}, headers={"Content-Security-Policy": "default-src 'self'"})

    headers = _call(Guard(app), HOST, method="GET", path="/")[1]
    assert headers["content-security-policy"] == "default-src 'self'"


def test_refusals_in_the_dialect_of_a_path() -> None:
    """BigModel's clients get an error object that they do not understand."""

    def refuse(scope: Any, status: int, message: str) -> JSONResponse:
        return JSONResponse({"path": scope["path"], "message": message}, status)

    _, _, body = _call(Guard(_echo_length, refuse=refuse), ("host", "evil"), path="/api/x")
    assert json.loads(body)["path"] == "/api/x"


def test_lifespan_passes() -> None:
    """The server does not start."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])

    asyncio.run(Guard(app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == ["lifespan"]


# Keys at routes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[KeyStore]:
    database = Database(f"sqlite:///{tmp_path / 'serve.db'}")
    yield KeyStore(database, tmp_path / "serve.key")
    database.close()


def _guarded_app(store: KeyStore) -> FastAPI:
    router = APIRouter(dependencies=[Depends(require_key)])
    app = FastAPI(openapi_url=None)
    app.state.keys = store

    @router.get("/models")
    async def _(identity: Annotated[Identity, Depends(require_key)]) -> str:
        return identity.name

    @router.post("/models/load", dependencies=[Depends(require_admin)])
    async def _() -> None: ...

    @router.post("/chat")
    async def _(request: dict[str, Any]) -> None: ...

    @app.get("/health")
    async def _() -> str:
        return "ok"

    for error, status in ((AuthenticationFailed, 401), (NotPermitted, 403)):

        async def answer(request: Request, error: Exception, status: int = status) -> JSONResponse:
            return JSONResponse({"reason": getattr(error, "reason", "role")}, status)

        app.add_exception_handler(error, answer)
    app.include_router(router, prefix="/v1")
    return app


def test_routes_ask_for_a_key(store: KeyStore) -> None:
    """A route is open, a user may do what admins may, or a good key is refused."""
    app = _guarded_app(store)
    user, admin = store.create("ann"), store.create("root", "admin")
    get = {"method": "GET", "path": "/v1/models"}
    load = {"method": "POST", "path": "/v1/models/load"}
    assert _call(app, HOST, **get)[::2] == (401, b'{"reason":"missing"}')  # type: ignore[arg-type]
    good = ("authorization", f"Bearer {user}")
    for _ in range(2):  # from the database, then from memory
        assert _call(app, HOST, good, **get)[::2] == (200, b'"ann"')  # type: ignore[arg-type]
    twice = _call(app, HOST, good, good, **get)  # type: ignore[arg-type]
    assert twice[::2] == (401, b'{"reason":"malformed"}')
    assert _call(app, HOST, good, **load)[::2] == (403, b'{"reason":"role"}')  # type: ignore[arg-type]
    good = ("authorization", admin)
    assert _call(app, HOST, good, **load)[0] == 200  # type: ignore[arg-type]


def test_every_route_is_checked(store: KeyStore) -> None:
    """A route that was added without a key goes unnoticed: in a router, a mount, or by FastAPI."""
    check_routes(_guarded_app(store).routes)

    def refused(app: FastAPI, path: str) -> None:
        with pytest.raises(ConfigError, match=f"no key: {path}$"):
            check_routes(app.routes)

    app = _guarded_app(store)
    app.get("/open")(lambda: None)
    refused(app, "/open")

    inner, outer = APIRouter(), APIRouter()
    inner.get("/b")(lambda: None)
    outer.include_router(inner, prefix="/a")
    app = _guarded_app(store)
    app.include_router(outer, prefix="/v2")
    refused(app, "/v2/a/b")

    app = _guarded_app(store)
    app.mount("/sub", _guarded_app(store))
    refused(app, "/sub/health")  # public is a path, not its end

    app = _guarded_app(store)
    app.routes.append(Mount("/page", _echo_length))
    refused(app, "/page/")
    check_routes(app.routes, frozenset({"/health", "/page/"}))

    with pytest.raises(ConfigError, match=r"/docs, /docs/oauth2-redirect, /openapi\.json, /redoc"):
        check_routes(FastAPI().routes)

    app = _guarded_app(store)
    app.websocket("/socket")(lambda: None)  # type: ignore[arg-type, return-value]
    refused(app, "/socket")


# On the wire


@pytest.fixture
def port(store: KeyStore) -> Iterator[int]:
    """A real server on loopback."""
    uvicorn = pytest.importorskip("uvicorn", reason="the server is an extra: '.[serve]'")
    app = Guard(_guarded_app(store), GuardSettings(body=BodyLimits(bytes=1000, seconds=0.2)))
    config = uvicorn.Config(app, port=0, log_level="error", lifespan="off", http="h11")
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join()
    listening.close()


def _raw(port: int, request: bytes) -> int:
    """The status that a server answers bytes with."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        return int(connection.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "target",
    [
        "/v1/models",
        "//v1/models",
        "/v1//models",
        "/v1/models/",
        "/%761/models",
        "/v1/%6dodels",
        "/health/../v1/models",
        "/health/%2e%2e/v1/models",
        "/v1/models?authorization=x",
        "http://localhost/v1/models",
        "http://evil.example/health",
        "/docs",
        "/openapi.json",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_no_spelling_of_a_path_gets_round_the_key(port: int, target: str, method: str) -> None:
    """A path reaches a route in a spelling that the check of keys does not know."""
    request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    expected = {401, 404, 405} if method == "HEAD" else {401, 404}
    assert _raw(port, request.encode()) in expected | ({307} if target.endswith("/") else set())


def test_bodies_on_the_wire(port: int) -> None:
    """What the server hands over differs from what the tests above assume."""
    head = (
        b"POST /v1/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunk = b"64\r\n" + b"1" * 100 + b"\r\n"
    assert _raw(port, head + chunk * 11) == 413
    assert _raw(port, head + chunk) == 408
    assert _raw(port, head + chunk + b"0\r\n\r\n") == 401


def test_a_client_that_does_not_read() -> None:
    """A client that asks and never reads holds its place for good."""
    ended = []

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        finally:
            ended.append(True)

    async def full(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    async def nothing() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http", "method": "GET", "path": "/", "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    guard = Guard(endless, GuardSettings(read_seconds=0.05))
    asyncio.run(guard(scope, nothing, full))
    assert ended
