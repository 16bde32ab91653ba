"""A local server that speaks the file interfaces of both hubs, and misbehaves on demand.

Large files of Hugging Face are redirected to a second port, as the hub redirects to a CDN, so that
a login which follows the redirect would be seen there.
"""

from __future__ import annotations

import hashlib
import json
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_ENDINGS = (".safetensors", ".bin", ".pt", ".model")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESET = struct.pack("ii", 1, 0)
"""Linger on, for 0 seconds: closing sends a reset instead of an end."""


@dataclass
class Repository:
    """Files by path; `listed` replaces what the listing says of a path."""

    files: dict[str, bytes]
    licence: str = "other"
    commit: str = COMMIT
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    extra_entries: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Request:
    """One line of the log."""

    path: str
    headers: dict[str, str]
    port: int

    @property
    def start(self) -> int:
        """The first byte that was asked for."""
        named = self.headers.get("range", "bytes=0-")
        return int(named.removeprefix("bytes=").removesuffix("-"))


@dataclass
class HubServer:
    """What it has, what it was asked, and how it misbehaves.

    Args:
        drops: the next answers with file content break off after so many bytes each.
        statuses: the next requests for file content are answered by these statuses.
        retry_after: header sent with them.
        stall: an answer with file content stops at so many bytes until `release` is set.
        is_portal: every request is answered by a web page, as a hotel's network does.
        is_gated: everything is refused without the token "secret".
        ignores_range: files are always sent from the start.
        shifts_range: files are continued one byte later than was asked.
        corrupt: paths of which the first byte is changed.
        sent_size: path -> number of bytes that are sent instead of all.
    """

    repositories: dict[str, Repository] = field(default_factory=dict)
    log: list[Request] = field(default_factory=list)
    drops: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    retry_after: str = ""
    stall: int | None = None
    release: threading.Event = field(default_factory=threading.Event)
    is_portal: bool = False
    is_gated: bool = False
    ignores_range: bool = False
    shifts_range: bool = False
    corrupt: set[str] = field(default_factory=set)
    sent_size: dict[str, int] = field(default_factory=dict)
    endpoint: str = ""
    cdn: str = ""

    def requests(self, path: str) -> list[Request]:
        """Requests for the content of a file, in order."""
        return [entry for entry in self.log if _content_path(entry.path) == path]


@contextmanager
def running() -> Iterator[HubServer]:
    """Runs a server on two free ports of 127.0.0.1."""
    state = HubServer()
    handler = type("Handler", (_Handler,), {"hub": state})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    threads = [
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        for server in servers
    ]
    for thread in threads:
        thread.start()
    state.endpoint, state.cdn = (f"http://127.0.0.1:{s.server_port}" for s in servers)
    try:
        yield state
    finally:
        state.release.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()


def git_blob(content: bytes) -> str:
    """The name that Git gives to this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _content_path(url: str) -> str | None:
    parts = urlsplit(url)
    query = parse_qs(parts.query)
    if "FilePath" in query:
        return query["FilePath"][0]
    if parts.path.startswith("/cdn/"):
        return unquote(parts.path.split("/", 4)[4])
    return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement
    hub: HubServer

    def log_message(self, *_: object) -> None: ...

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        port = self.connection.getsockname()[1]
        self.hub.log.append(Request(self.path, headers, port))
        parts = urlsplit(self.path)
        words = [unquote(word) for word in parts.path.split("/")[1:]]
        if self.hub.is_portal:
            self._answer(200, "<html>log in</html>")
            return
        if self._is_refused(words):
            return
        if words[:2] == ["api", "models"]:
            self._huggingface_listing(words[2:])
        elif words[:3] == ["api", "v1", "models"]:
            self._modelscope(words[3:], parse_qs(parts.query))
        elif words[0] == "cdn":
            self._content("/".join(words[1:3]), "/".join(words[3:]), {})
        elif len(words) > 4 and words[2] == "resolve":
            self._resolve(words)
        else:
            self._answer(404, {})

    def _is_refused(self, words: list[str]) -> bool:
        sent = self.headers.get("authorization", "") + self.headers.get("cookie", "")
        if not self.hub.is_gated or "secret" in sent or words[0] == "cdn":
            return False
        is_modelscope = words[:2] == ["api", "v1"]
        self._answer(403 if is_modelscope else 401, {}, {"X-Error-Code": "GatedRepo"})
        return True

    def _huggingface_listing(self, words: list[str]) -> None:
        name = "/".join(words[:2])
        if name.startswith("THUDM/"):  # renamed
            rest = "/".join(["/api/models/zai-org", *words[1:]])
            self._answer(307, {}, {"Location": f"{rest}?{urlsplit(self.path).query}"})
            return
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._answer(404, {}, {"X-Error-Code": "RepoNotFound"})
            return
        if words[2:3] == ["revision"] and words[3] not in ("main", repository.commit):
            self._answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
            return
        siblings = []
        for path, content in repository.files.items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = git_blob(content)
            if path.endswith(LFS_ENDINGS):
                entry["blobId"] = git_blob(b"pointer")
                digest = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
            siblings.append(entry | repository.listed.get(path, {}))
        body = {"id": name, "sha": repository.commit, "tags": []}
        body |= {"siblings": siblings + repository.extra_entries}
        self._answer(200, body | {"cardData": {"license": repository.licence}})

    def _resolve(self, words: list[str]) -> None:
        name, path = "/".join(words[:2]), "/".join(words[4:])
        repository = self.hub.repositories[name]
        content = repository.files[path]
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{git_blob(content)}"'}
        if path.endswith(LFS_ENDINGS):
            headers["X-Linked-Size"] = str(len(content))
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["Location"] = f"{self.hub.cdn}/cdn/{name}/{quote(path)}?signature=1"
            self._answer(302, {}, headers)
        else:
            self._content(name, path, headers)

    def _modelscope(self, words: list[str], query: dict[str, list[str]]) -> None:
        name = "/".join(words[:2])
        repository = self.hub.repositories.get(name)
        if repository is None:
            self._answer(404, {"Code": 10010205001, "Success": False, "Data": None})
        elif words[2:] == []:
            self._answer(200, {"Code": 200, "Data": {"License": repository.licence}})
        elif words[2:] == ["repo", "files"]:
            files: list[dict[str, Any]] = [{"Path": "folder", "Type": "tree", "Size": 0}]
            for path, content in repository.files.items():
                entry = {"Path": path, "Type": "blob", "Size": len(content)}
                entry["Sha256"] = hashlib.sha256(content).hexdigest()
                files.append(entry | repository.listed.get(path, {}))
            self._answer(200, {"Code": 200, "Data": {"Files": files + repository.extra_entries}})
        else:
            self._content(name, query["FilePath"][0], {})

    def _content(self, name: str, path: str, headers: dict[str, str]) -> None:
        """The bytes of a file, from where they were asked for, as far as the faults let them."""
        hub = self.hub
        if hub.statuses:
            retry = {"Retry-After": hub.retry_after} if hub.retry_after else {}
            self._answer(hub.statuses.pop(0), {}, retry)
            return
        content = hub.repositories[name].files[path]
        if path in hub.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        content = content[: hub.sent_size.get(path)]
        total, start = len(content), hub.log[-1].start
        if hub.ignores_range:
            start = 0
        if start > total:
            self._answer(416, {}, {"Content-Range": f"bytes */{total}"})
            return
        start += hub.shifts_range and start > 0
        if start:
            headers = headers | {"Content-Range": f"bytes {start}-{total - 1}/{total}"}
        body = content[start:]
        self.send_response(206 if start else 200)
        headers = headers | {"Accept-Ranges": "bytes", "Content-Length": str(len(body))}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self._send(body)

    def _send(self, body: bytes) -> None:
        hub = self.hub
        if hub.drops and len(body) > hub.drops[0]:
            self.wfile.write(body[: hub.drops.pop(0)])
            if len(hub.drops) % 2:  # some connections end, some are reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.close_connection = True
        elif hub.stall is not None and len(body) > hub.stall:
            self.wfile.write(body[: hub.stall])
            hub.release.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def _answer(self, status: int, body: object, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
