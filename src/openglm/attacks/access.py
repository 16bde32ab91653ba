"""Attacks on who may call: keys, tokens, names and origins."""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import json
import re
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from openglm.attacks.attack import refused
from openglm.attacks.target import NotApplicable, Target

METHODS = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE")
PATHS = (
    "/", "/docs", "/redoc", "/openapi.json", "/metrics", "/ready", "/version", "/server_info",
    "/v1", "/v1/models", "/v1/models/", "//v1/models", "/v1//models", "/%761/models",
    "/v1/%6dodels", "/v1/../metrics", "/health/../metrics", "/health/", "/v1/models;x=/health",
    "/v1/models?/health", "/tokenize", "/v1/tokenize", "/v1/files", "/v1/batches", "/invocations",
    "/api/paas/v4/models", "/api/paas/v4/files", "/static/x.js", "/nothing",
)  # fmt: skip
"""Ways to name what needs a key, and paths that other servers left open."""
KNOWN_KEYS = ("EMPTY", "empty", "none", "null", "test", "admin", "openglm", "changeme", "sk-xxx",
              "sk-no-key-required", "token-abc123", "a.b", ".", "..", "x" * 5000)  # fmt: skip
"""What examples in documentation use, and what is no key at all."""
CLOSED = (400, 401, 403, 404, 405, 431)
EVIL_HOSTS = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "evil.example#localhost", "localhost@evil.example", "xn--localhost-", "*",
)  # fmt: skip
EVIL_ORIGINS = (
    "https://evil.example", "null", "http://localhost.evil.example", "http://127.0.0.1:1",
    "file://", "chrome-extension://evil",
)  # fmt: skip
TIMING_ROUNDS = 40
TIMING_SECONDS = 0.01
"""A difference that can be seen through a network."""
TIMING_SHARE = 0.75
"""Of the pairs that differ so; noise reaches it in one run of a thousand (30 heads of 40)."""
LEAST_RANDOM_CHARACTERS = 22
"""128 bits in base64."""
HOUR_MS = 3_600_000


def without_a_key(target: Target) -> Iterator[str]:
    """A1."""
    wrong = target.key.partition(".")[0] + ".wrong"
    credentials: tuple[tuple[str, ...], ...] = (
        (),
        ("Authorization: Basic eDp5",),
        (f"Authorization: Bearer {wrong}",),
        (f"Authorization: Bearer {wrong}", target.bearer),
    )
    every = itertools.product((*PATHS, f"{target.address}/v1/models"), METHODS)
    for (path, method), credential in zip(every, itertools.cycle(credentials[:3])):
        head = target.head(method, path, *credential, "Content-Length: 0", "Connection: close")
        yield from refused(f"{method} {path}", target.raw(head, method=method), CLOSED)
    for credential in credentials:
        head = target.head("GET", "/v1/models", *credential, "Connection: close")
        yield from refused(f"GET /v1/models with {credential}", target.raw(head), CLOSED)
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13")
    for path in ("/", "/v1/chat/completions", "/ws", "/queue/join"):
        head = target.head("GET", path, *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        yield from refused(f"a websocket at {path}", target.raw(head), (*CLOSED, 426))


def guessing(target: Target) -> Iterator[str]:
    """A2: of an id that exists one learns as much as of one that does not."""
    key_id, _, secret = target.key.partition(".")
    known = [f"{key_id}.{secret[:-1]}{'A' if secret[-1] != 'A' else 'B'}", f"{key_id}.wrong"]
    unknown = [f"{'0' * len(key_id)}.{secret}", f"{'f' * len(key_id)}.wrong"]
    answers = {k: target.send("GET", "/v1/models", key=k) for k in known + unknown}
    for one, found in answers.items():
        yield from refused(f"the key {one[:6]}...", found, (401,))
    if len({(found.status, found.text) for found in answers.values()}) > 1:
        yield "the answers tell which ids exist"
    differences = []
    for number in range(TIMING_ROUNDS):  # in pairs and turns, so that noise falls on both
        seconds = {}
        for one in (known[0], unknown[0])[:: 1 if number % 2 else -1]:
            begin = time.perf_counter()
            target.send("GET", "/v1/models", key=one)
            seconds[one] = time.perf_counter() - begin
        differences.append(seconds[known[0]] - seconds[unknown[0]])
    median = statistics.median(differences)
    alike = sum(one * median > 0 for one in differences) / TIMING_ROUNDS
    if abs(median) > TIMING_SECONDS and alike > TIMING_SHARE:
        yield f"the time tells which ids exist: they take {median:+.4f} s"


def forged_tokens(target: Target) -> Iterator[str]:
    """A3."""
    key_id, _, secret = target.key.partition(".")
    now = int(time.time() * 1000)
    good = {"api_key": key_id, "exp": now + 210_000, "timestamp": now}
    if target.send("GET", "/v1/models", key=_token(good, secret)).status != 200:
        raise NotApplicable("this server takes no signed tokens of this key")
    claims: dict[str, dict[str, object]] = {
        "of another id": {"api_key": "0" * len(key_id)},
        "that expired an hour ago": {"exp": now - HOUR_MS, "timestamp": now - HOUR_MS},
        "whose exp is in seconds": {"exp": now // 1000 + 210},
        "that is good until the year 58000": {"exp": now * 1000},
        "signed in the future": {"timestamp": now + HOUR_MS},
        "signed long ago": {"timestamp": now - 24 * HOUR_MS},
        "without exp": {"exp": None},
        "without timestamp": {"timestamp": None},
        "with exp as text": {"exp": str(now + 210_000)},
        "with exp true": {"exp": True},
        "with exp infinite": {"exp": float("inf")},
        "with a list as id": {"api_key": [key_id]},
    }
    for what, changed in claims.items():
        token = _token({**good, **changed}, secret)
        yield from refused(f"a token {what}", target.send("GET", "/v1/models", key=token), (401,))
    tokens = {
        "with alg none": _token(good, "", {"alg": "none", "sign_type": "SIGN"}).rpartition(".")[0]
        + ".",
        "with alg NONE, signed": _token(good, secret, {"alg": "nOnE", "sign_type": "SIGN"}),
        "with alg RS256": _token(good, secret, {"alg": "RS256", "sign_type": "SIGN"}),
        "signed with its id": _token(good, key_id),
        "signed with nothing": _token(good, ""),
        "of dots": "..",
        "of four parts": _token(good, secret) + ".x",
        "of 12 kB": _token({**good, "padding": "x" * 12_000}, secret),
    }
    for what, token in tokens.items():
        found = target.send("GET", "/v1/models", key=token)
        yield from refused(f"a token {what}", found, (400, 401, 431))


def leaked_keys(target: Target) -> Iterator[str]:
    """A4."""
    for name in ("key", "api_key", "access_token", "token"):
        found = target.send("GET", f"/v1/models?{name}={target.key}", key=None)
        yield from refused(f"the key as ?{name}=", found, (401, 403, 404))
    almost = target.key + "x"
    answers = {
        "a key with a letter too many": target.send("GET", "/v1/models", key=almost),
        "no JSON": target.send("POST", next(iter(target.calls)), content=b"{"),
        "an unknown model": target.ask(model="no-such-model"),
        "an unknown path": target.send("GET", "/nothing"),
    }
    shown = ("/metrics", "/openapi.json", "/server_info", "/get_server_info", "/v1/models", "/info")
    answers |= {path: target.send("GET", path) for path in shown}
    for what, found in answers.items():
        if target.secret in found.text + str(found.headers):
            yield f"{what}: the answer holds the key"
    if target.log is not None and target.secret in target.log.read_text(errors="replace"):
        yield "the log holds the key"


def other_names(target: Target) -> Iterator[str]:
    """A6: what a page does whose name was made to resolve to this server."""
    for host in EVIL_HOSTS:
        for lines in ((), (f"Origin: http://{host}",)):
            head = target.head(
                "GET", "/v1/models", target.bearer, *lines, "Connection: close", host=host
            )
            yield from refused(f"Host: {host}", target.raw(head), (400, 403, 421))
    for what, hosts in {"no Host": [], "two of them": [target.authority, "evil.example"]}.items():
        every = [f"Host: {host}" for host in hosts]
        head = target.head("GET", "/v1/models", target.bearer, *every, host=None)
        yield from refused(what, target.raw(head), (400, 403, 421))


def other_origins(target: Target) -> Iterator[str]:
    """A7."""
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "*"}
    path = next(iter(target.calls))
    for origin in EVIL_ORIGINS:
        for method, more in (("GET", {}), ("POST", {}), ("OPTIONS", asks)):
            body = target.calls[path] if method == "POST" else None
            at = "/v1/models" if method == "GET" else path
            found = target.send(method, at, json=body, headers={"Origin": origin, **more})
            what = f"{method} from {origin}"
            yield from refused(what, found, (400, 401, 403, 405))
            if allowed := found.headers.get("access-control-allow-origin"):
                yield f"{what}: pages of {allowed} may read the answer"


def forged_forms(target: Target) -> Iterator[str]:
    """A8: what a page can send without asking the browser for leave."""
    path = next(iter(target.calls))
    body = json.dumps(target.calls[path]).encode()
    for name in ("key", "api_key", "token", "Authorization", "session"):
        cookie = {"Cookie": f"{name}={target.key}"}
        found = target.send("POST", path, key=None, json=target.calls[path], headers=cookie)
        yield from refused(f"the key as the cookie {name}", found, (401, 403))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        found = target.send("POST", path, content=body, headers={"Content-Type": kind})
        yield from refused(f"a call as {kind or 'nothing'}", found, (400, 415, 422))


def guessed_ids(target: Target) -> Iterator[str]:
    """A9."""
    names = [str((target.ask().json() or {}).get("id", "")) for _ in range(2)]
    tails = [re.sub(r"^[a-z]+[-_]", "", name).replace("-", "") for name in names]
    equal = sum(a == b for a, b in zip(*tails, strict=False))
    if min(map(len, tails)) < LEAST_RANDOM_CHARACTERS or equal > len(tails[0]) // 2:
        yield f"the ids of answers can be guessed: {names[0]}, {names[1]}"
    for path in (
        "/v1/files/{}", "/v1/files/{}/content", "/v1/batches/{}", "/api/paas/v4/files/{}/content",
        "/api/paas/v4/async-result/{}", "/api/paas/v4/batches/{}",
    ):  # fmt: skip
        for one in ("1", "0", "-1", "file-1", names[0], "0" * 32):
            at = path.format(one)
            yield from refused(f"GET {at}", target.send("GET", at), (400, 404, 405))


def known_keys(target: Target) -> Iterator[str]:
    """A10."""
    for key in KNOWN_KEYS:
        for scheme in ("Bearer ", "", "Basic "):
            headers = {"Authorization": scheme + key}
            found = target.send("GET", "/v1/models", key=None, headers=headers)
            yield from refused(f"the key {scheme}{key[:20]}", found, (400, 401, 431))
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer"}, {"X-Api-Key": "EMPTY"}):
        found = target.send("GET", "/v1/models", key=None, headers=headers)
        yield from refused(f"the header {next(iter(headers))}", found, (401,))


def _token(
    claims: Mapping[str, object], secret: str, header: Mapping[str, Any] | None = None
) -> str:
    """A token as BigModel's clients sign it; claims that are None are left out."""
    head = header or {"alg": "HS256", "sign_type": "SIGN", "typ": "JWT"}
    parts = [head, {name: value for name, value in claims.items() if value is not None}]
    signed = ".".join(_base64(json.dumps(part).encode()) for part in parts)
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{_base64(digest)}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
