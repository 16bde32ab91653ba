"""Servers that are broken on purpose, to see that an attack on them succeeds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import mmap
import re
from collections.abc import Awaitable, Callable
from posixpath import normpath
from typing import Any
from urllib.request import urlopen

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from openglm.log import logger

Around = Callable[[ASGIApp, str], ASGIApp]


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of a name."""
    return next((value for key, value in scope["headers"] if key == name), b"")


def with_header(scope: Scope, name: bytes, value: bytes) -> Scope:
    """A request with one header replaced, or taken away if it is empty."""
    kept = [(key, old) for key, old in scope["headers"] if key != name]
    return {**scope, "headers": [*kept, (name, value)] if value else kept}


def changing(change: Callable[[Scope, str], Scope]) -> Around:
    """A server that sees other requests than were sent."""

    def around(app: ASGIApp, key: str) -> ASGIApp:
        async def changed(scope: Scope, receive: Receive, send: Send) -> None:
            await app(change(scope, key) if scope["type"] == "http" else scope, receive, send)

        return changed

    return around


def answering(change: Callable[[Scope, Message], Awaitable[Message] | Message]) -> Around:
    """A server whose answers are changed."""

    def around(app: ASGIApp, key: str) -> ASGIApp:
        async def changed(scope: Scope, receive: Receive, send: Send) -> None:
            async def changing_send(message: Message) -> None:
                found = change(scope, message)
                await send(await found if isinstance(found, Awaitable) else found)

            await app(scope, receive, changing_send if scope["type"] == "http" else send)

        return changed

    return around


def _let_in(scope: Scope, key: str) -> Scope:
    return with_header(scope, b"authorization", f"Bearer {key}".encode())


@changing
def guards_a_prefix(scope: Scope, key: str) -> Scope:
    """Asks for keys below /v1/ only."""
    return scope if scope["path"].startswith("/v1") else _let_in(scope, key)


def slow_for_known_ids(app: ASGIApp, key: str) -> ASGIApp:
    """Hashes slowly, but only for ids that exist."""

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and key.partition(".")[0].encode() in header(
            scope, b"authorization"
        ):
            await asyncio.sleep(0.03)
        await app(scope, receive, send)

    return slow


@changing
def trusts_tokens(scope: Scope, key: str) -> Scope:
    """Takes a token at its word."""
    return _let_in(scope, key) if header(scope, b"authorization").count(b".") == 2 else scope


@answering
def echoes_keys(scope: Scope, message: Message) -> Message:
    """Shows the caller's headers with each answer."""
    if message["type"] == "http.response.start":
        told = (b"x-debug", header(scope, b"authorization"))
        return {**message, "headers": [*message["headers"], told]}
    return message


@changing
def knows_any_name(scope: Scope, key: str) -> Scope:
    """Does not look at `Host` and `Origin`."""
    return with_header(with_header(scope, b"host", b"localhost"), b"origin", b"")


@answering
def open_to_pages(scope: Scope, message: Message) -> Message:
    """Lets pages of all origins read its answers."""
    if message["type"] == "http.response.start":
        return {**message, "headers": [*message["headers"], (b"access-control-allow-origin", b"*")]}
    return message


@changing
def takes_any_type(scope: Scope, key: str) -> Scope:
    """Reads what a form sends as JSON."""
    return with_header(scope, b"content-type", b"application/json")


_numbers = itertools.count()


@answering
def numbers_answers(scope: Scope, message: Message) -> Message:
    """Gives ids in a row."""
    body = message.get("body", b"")
    if body.startswith(b'{"id":"'):
        old = json.loads(body)["id"]
        new = f"{next(_numbers):0{len(old)}d}"
        return {**message, "body": body.replace(old.encode(), new.encode())}
    return message


@changing
def has_a_default_key(scope: Scope, key: str) -> Scope:
    """Takes the key that stands in its documentation."""
    known = header(scope, b"authorization") == b"Bearer EMPTY"
    return _let_in(scope, key) if known else scope


def reading(read: Callable[[bytes], Awaitable[bytes]]) -> Around:
    """A server that gets other bodies than were sent."""

    def around(app: ASGIApp, key: str) -> ASGIApp:
        async def changed(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http" or scope["method"] != "POST":
                await app(scope, receive, send)
                return
            content = await read(await Request(scope, receive).body())
            waiting = [{"type": "http.request", "body": content, "more_body": False}]

            async def again() -> Message:
                return waiting.pop() if waiting else await receive()

            length = str(len(content)).encode()
            await app(with_header(scope, b"content-length", length), again, send)

        return changed

    return around


@reading
async def ignores_fields(body: bytes) -> bytes:
    """Reads only what a call needs, whatever else is in it."""
    needed = ("model", "messages", "prompt", "text")
    try:
        kept = {name: json.loads(body)[name] for name in needed if name in json.loads(body)}
        return json.dumps({**kept, "max_tokens": 1}).encode()
    except (ValueError, TypeError, RecursionError):
        return body


@reading
async def fetches_pictures(body: bytes) -> bytes:
    """Looks at the address of every picture before it reads the call."""
    for address in re.findall(rb'"url": "(http://127[^"]*)"', body):
        with contextlib.suppress(OSError):
            await asyncio.to_thread(urlopen, address.decode(), timeout=0.2)
    return body


@reading
async def joins_names_to_a_folder(body: bytes) -> bytes:
    """Looks for models in a folder, by what names are as paths."""
    try:
        asked = json.loads(body)
        return json.dumps({**asked, "model": normpath(f"/models/{asked['model']}")[8:]}).encode()
    except (ValueError, TypeError, LookupError):
        return body


@answering
def blames_itself(scope: Scope, message: Message) -> Message:
    """Fails at every wrong request."""
    wrong = message["type"] == "http.response.start" and message["status"] in (400, 413, 422)
    return {**message, "status": 500} if wrong else message


def keeps_everything(app: ASGIApp, key: str) -> ASGIApp:
    """Remembers something of every call."""
    kept = []

    async def keeping(scope: Scope, receive: Receive, send: Send) -> None:
        kept.append(mmap.mmap(-1, 500_000))  # of the system: a process has freed memory in store
        kept[-1].write(b"x" * 500_000)
        await app(scope, receive, send)

    return keeping


@answering
def shows_its_inside(scope: Scope, message: Message) -> Message:
    """Answers what is wrong with the place in its source that found it."""
    body = message.get("body", b"")
    trace = b"Traceback (most recent call last):"
    is_error = body.startswith(b'{"error"')
    return {**message, "body": trace + body[len(trace) :]} if is_error else message


def one_at_a_time(app: ASGIApp, key: str) -> ASGIApp:
    """Reads a request to its end before it looks at the next."""
    lock = asyncio.Lock()

    async def single(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        async with lock:
            await app(scope, receive, send)

    return single


@changing
def logs_what_is_sent(scope: Scope, key: str) -> Scope:
    """Writes paths into its log as they come."""
    logger.warning("%s %s", scope["method"], scope["path"])
    return scope


class Files:
    """A server of files alone, good or broken.

    Args:
        key: of the user who owns every file.
        other: of somebody else.
        is_broken: files are found by the names that clients give them, by everybody.
    """

    def __init__(self, key: str, other: str, is_broken: bool) -> None:
        self.keys = {f"Bearer {key}": "me", f"Bearer {other}": "other"}
        self.is_broken = is_broken
        self.files: dict[str, tuple[str, bytes]] = {}
        self.numbers = itertools.count(10**30)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = Request(scope, receive)
            await (await self.answer(request))(scope, receive, send)

    async def answer(self, request: Request) -> Response:
        """Answers uploads, lists and reads."""
        owner = self.keys.get(request.headers.get("authorization", ""))
        path = request.url.path
        if path == "/v1/models":
            return JSONResponse({"data": [{"id": "m"}]})
        if path == "/v1/chat/completions":
            return JSONResponse({"id": "x"})
        if owner is None or not path.startswith("/v1/files"):
            return JSONResponse({"error": {}}, 404)
        if path == "/v1/files":
            if request.method == "GET":
                found = [i for i, (whose, _) in self.files.items() if self._may(owner, whose)]
                return JSONResponse({"data": found})
            return await self._store(request, owner)
        name = path.removeprefix("/v1/files/").removesuffix("/content")
        if self.is_broken and ("passwd" in name or ".." in name):
            return Response("root:x:0:0")
        whose, content = self.files.get(name, ("nobody", b""))
        if not self._may(owner, whose):
            return JSONResponse({"error": {}}, 404)
        if self.is_broken:
            return Response(content, media_type="text/html")
        saved = {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        return Response(content, media_type="application/octet-stream", headers=saved)

    def _may(self, owner: str, whose: str) -> bool:
        return whose == owner or (self.is_broken and whose != "nobody")

    async def _store(self, request: Request, owner: str) -> Response:
        async with request.form() as form:
            given: Any = form.get("file")
            if not hasattr(given, "read"):
                return JSONResponse({"error": {}}, 400)
            name = given.filename if self.is_broken else f"file-{next(self.numbers)}"
            self.files[name] = (owner, await given.read())
        return JSONResponse({"id": name})
