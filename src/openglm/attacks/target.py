"""`Target`: the server that is attacked, and ways to reach it that no well-behaved client has."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from json import dumps, loads
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from openglm.errors import RequestError, UsageError

SECONDS = 60.0
"""Longest wait for an answer; what is refused should be refused much faster."""
PATIENCE = 3
"""How often a call is repeated that was told to come back later: limits are no verdict."""
LONGEST_PAUSE = 61.0
"""Seconds; a limit per minute asks for no more."""
CALLS: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
    "/v1/completions": {"prompt": "hello"},
    "/v1/fill": {"text": "hello [MASK]"},
    "/api/paas/v4/chat/completions": {"messages": [{"role": "user", "content": "hello"}]},
}
"""Path -> the shortest call that makes a model write, without `model` and `max_tokens`."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How often things are done of which a few may do no harm.

    Args:
        streams: that nobody reads, at once.
        disconnects: clients that leave.
        mutations: of valid calls.
    """

    streams: int
    disconnects: int
    mutations: int


QUICK = Counts(64, 120, 300)
FULL = Counts(10_000, 1_000, 100_000)


class NotApplicable(Exception):
    """An attack on something that this server does not have."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server answered.

    Args:
        status: of HTTP; 0 if there was no answer.
        headers: names in lower case.
        text: the body, or why there was no answer.
        seconds: until it was complete.
    """

    status: int
    headers: Mapping[str, str]
    text: str
    seconds: float

    def json(self) -> Any:
        """The body as JSON; None if it is none."""
        try:
            return loads(self.text)
        except ValueError:
            return None


class Target:
    """A server, and a key that it knows.

    Args:
        address: like http://127.0.0.1:8000.
        key: an ordinary user's.
        model: that is asked; the first that is listed by default.
        other_key: of another user.
        log: the file that the server logs to, if it can be read here.
        any_host: the server may be on another machine.
        counts: how often some attacks try.

    Attributes:
        calls: path -> a valid body that was answered with 200.

    Raises:
        UsageError: the address is malformed, or leads to another machine and must not.
        RequestError: the server does not answer well-behaved calls with this key.
    """

    def __init__(
        self,
        address: str,
        key: str,
        *,
        model: str | None = None,
        other_key: str | None = None,
        log: Path | None = None,
        any_host: bool = False,
        counts: Counts = QUICK,
    ) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or parts.hostname is None:
            raise UsageError(f"{address!r} is no address", hint="like http://127.0.0.1:8000")
        if not any_host and not _is_loopback(parts.hostname):
            raise UsageError(
                f"{parts.hostname} is not this machine; attacking others may be a crime",
                hint="--any-host, if that server is yours",
            )
        self.address = f"{parts.scheme}://{parts.netloc}"
        self.host, self.authority = parts.hostname, parts.netloc
        self.port = parts.port or {"http": 80, "https": 443}[parts.scheme]
        self.is_secure = parts.scheme == "https"
        self.key, self.other_key, self.log = key, other_key, log
        self.counts = counts
        self.client = httpx2.Client(base_url=self.address, timeout=SECONDS, trust_env=False)
        try:
            self._check_other_key()
            self.model = model or self._first_model()
            self.calls = self._answered()
        except BaseException:
            self.close()
            raise

    def _answered(self) -> dict[str, dict[str, Any]]:
        """Calls that the model answers; raises `RequestError` if there are none."""
        bodies = {
            path: {"model": self.model, "max_tokens": 1, **body} for path, body in CALLS.items()
        }
        answers = {path: self.send("POST", path, json=body) for path, body in bodies.items()}
        calls = {path: bodies[path] for path, found in answers.items() if found.status == 200}
        if not calls:
            first = next(iter(answers.values()))
            raise RequestError(f"{self.model} answers no call: {first.status} {first.text[:200]}")
        return calls

    @property
    def secret(self) -> str:
        """The half of the key that nobody else may see."""
        return self.key.rpartition(".")[2]

    def close(self) -> None:
        """Ends all connections."""
        self.client.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        key: str | None = "",
        json: object = None,
        content: bytes | None = None,
        files: Any = None,
        data: Any = None,
        headers: Mapping[str, str] | None = None,
        patience: int = PATIENCE,
    ) -> Answer:
        """One request.

        Args:
            method: of HTTP.
            path: with the query.
            key: another one than the target's, or None for none.
            json: the body.
            content: or the body's bytes.
            files: or its parts.
            data: of a form, beside its files.
            headers: further ones.
            patience: how often to come back when told to come back later.
        """
        every = {} if key is None else {"Authorization": f"Bearer {key or self.key}"}
        if json is not None:  # in ASCII, so that half characters can be sent
            content = dumps(json).encode()
            every["Content-Type"] = "application/json"
        every |= headers or {}
        begin = time.monotonic()
        try:
            found = self.client.request(
                method, path, content=content, files=files, data=data, headers=every
            )
        except (httpx2.HTTPError, OSError) as error:
            return Answer(0, {}, f"{type(error).__name__}: {error}", time.monotonic() - begin)
        pause = found.headers.get("retry-after", "")
        if found.status_code == 429 and patience and pause.isdigit():
            time.sleep(min(int(pause), LONGEST_PAUSE))
            return self.send(
                method, path, key=key, content=content, files=files, data=data, headers=every,
                patience=patience - 1,
            )  # fmt: skip
        lower = {name.lower(): value for name, value in found.headers.items()}
        return Answer(found.status_code, lower, found.text, time.monotonic() - begin)

    def ask(self, path: str | None = None, **fields: object) -> Answer:
        """A valid call with some fields replaced, at the first path that works or another one."""
        chosen = path or next(iter(self.calls))
        return self.send("POST", chosen, json={**self.calls[chosen], **fields})

    @contextmanager
    def plug(self, seconds: float = SECONDS, window: int | None = None) -> Iterator[socket.socket]:
        """A bare connection.

        Args:
            seconds: that anything may take on it.
            window: bytes that may wait here to be read; None for the system's choice.
        """
        family = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family[0], socket.SOCK_STREAM) as bare:
            if window is not None:  # counts only before the connection is made
                bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
            bare.settimeout(seconds)
            bare.connect(family[4])
            if self.is_secure:
                with ssl.create_default_context().wrap_socket(
                    bare, server_hostname=self.host
                ) as secure:
                    yield secure
            else:
                yield bare

    def head(self, method: str, path: str, *lines: str, host: str | None = "") -> bytes:
        """The head of a request, as it stands on the wire.

        Args:
            method: of HTTP.
            path: sent as it is.
            lines: further headers; `Host` is there, the key is not.
            host: another one than the target's, or None for none.
        """
        own = [] if host is None else [f"Host: {host or self.authority}"]
        return "\r\n".join([f"{method} {path} HTTP/1.1", *own, *lines, "", ""]).encode("latin-1")

    def raw(self, head: bytes, body: bytes = b"", method: str = "GET") -> Answer:
        """The answer to these bytes."""
        begin = time.monotonic()
        try:
            with self.plug() as plug:
                with suppress(OSError):  # refused before all was sent: the answer may be there
                    plug.sendall(head + body)
                found = http.client.HTTPResponse(plug, method=method)
                found.begin()
                text = b"" if found.status == 101 else found.read(1 << 20)
        except (http.client.HTTPException, OSError) as error:
            return Answer(0, {}, f"{type(error).__name__}: {error}", time.monotonic() - begin)
        lower = {name.lower(): value for name, value in found.getheaders()}
        return Answer(found.status, lower, text.decode(errors="replace"), time.monotonic() - begin)

    @property
    def bearer(self) -> str:
        """The header with the key."""
        return f"Authorization: Bearer {self.key}"

    def _check_other_key(self) -> None:
        """A key that the server does not know could take nothing from anybody."""
        if self.other_key is None:
            return
        found = self.send("GET", "/v1/models", key=self.other_key)
        if found.status != 200:
            raise RequestError(
                f"the server refuses the other key: {found.status} {found.text[:200]}",
                hint="--other-key takes one of `glm keys create`, whole: ID.SECRET",
            )

    def _first_model(self) -> str:
        found = self.send("GET", "/v1/models")
        listed = (found.json() or {}).get("data") or []
        if found.status != 200 or not listed:
            raise RequestError(f"the server lists no models: {found.status} {found.text[:200]}")
        return str(listed[0]["id"])


def _is_loopback(host: str) -> bool:
    """Whether a name stands for this machine, without asking anybody."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
