"""Attacks with numbers and sizes: what one request may ask for."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator

from openglm.attacks.attack import WAIT_SECONDS, refused, unharmed, watched
from openglm.attacks.target import Answer, Target

MEGABYTE = 1_000_000
BODY_MEGABYTES = 128
"""Sent where no end is announced, in vain if the server stops reading before."""
SLOW_CLIENTS = 48
SETTLE_SECONDS = 0.5
"""For the server to begin with them."""


def many_at_once(target: Target) -> Iterator[str]:
    """R1."""
    for path in target.calls:
        for name in ("n", "best_of"):
            for value in (10**6, 0, -1, 1.5, "2", True):
                if name == "n" or path == "/v1/completions":
                    found = target.ask(path, **{name: value})
                    yield from refused(f"{path} with {name}={value!r}", found)
    if "/v1/completions" in target.calls:
        found = target.ask("/v1/completions", prompt=["x"] * 100_000)
        yield from refused("100,000 prompts", found)
    for path in ("/v1/embeddings", "/api/paas/v4/embeddings"):
        body = {"model": target.model, "input": ["x"] * 1_000_000}
        yield from refused(f"{path} of 1,000,000 texts", target.send("POST", path, json=body))
    if "/v1/chat/completions" in target.calls:
        many = [{"role": "user", "content": "x"}] * 100_000
        yield from refused("100,000 messages", target.ask("/v1/chat/completions", messages=many))
        tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        found = target.ask("/v1/chat/completions", tools=[tool] * 10_000)
        yield from refused("10,000 tools", found)


def odd_numbers(target: Target) -> Iterator[str]:
    """R2: `max_tokens` and others that are no sane number."""
    huge = "1" + "0" * 4000
    values = {
        "max_tokens": ("-1", "0", "1.5", "true", "1e400", "NaN", "-Infinity", '"9"', huge, "[1]"),
        "temperature": ("-1", "NaN", "Infinity", "1e400", "true", '"hot"', huge, "{}"),
        "top_p": ("-0.1", "1.1", "NaN", huge),
        "seed": ("1.5", "1e400", huge, '"x"', "true"),
    }
    for path, (name, every) in itertools.product(target.calls, values.items()):
        for value in every:
            body = json.dumps({k: v for k, v in target.calls[path].items() if k != name})
            content = f'{body[:-1]}, "{name}": {value}}}'.encode()
            found = _post(target, path, content)
            yield from refused(f"{path} with {name}={value[:20]}", found)


def biases_and_alternatives(target: Target) -> Iterator[str]:
    """R3."""
    for path in target.calls:
        wrong: dict[str, dict[str, object]] = {
            "100,000 biases": {"logit_bias": dict.fromkeys(map(str, range(100_000)), 1)},
            "a bias of 1e30": {"logit_bias": {"1": 1e30}},
            "a bias of nobody": {"logit_bias": {"one": 1}},
            "a bias of token -1": {"logit_bias": {"-1": 1}},
            "a bias of token 10^400": {"logit_bias": {"1" + "0" * 400: 1}},
            "-1 alternatives": {"logprobs": True, "top_logprobs": -1},
            "10^6 alternatives": {"logprobs": True, "top_logprobs": 10**6},
        }
        if not path.endswith("chat/completions"):
            wrong |= {f"logprobs={n}": {"logprobs": n} for n in (-1, 10**6)}
        for what, fields in wrong.items():
            yield from refused(f"{path}: {what}", target.ask(path, **fields))
        found = target.ask(path, prompt_logprobs=-1)
        yield from unharmed(f"{path}: prompt_logprobs=-1", found)
        found = target.ask(path, logit_bias={str(10**9): 1})
        yield from unharmed(f"{path}: a bias of token 10^9", found)


def large_requests(target: Target) -> Iterator[str]:
    """R4: bodies and headers."""
    path = next(iter(target.calls))
    length = "Content-Length: 1000000000"
    found = target.raw(target.head("POST", path, target.bearer, length))
    yield from refused("a body of 1 GB that is announced", found, (400, 413))
    yield from refused("a body without an end", _endless(target, path), (400, 408, 413))
    for what, size in {"100 kB": 100_000, "5 MB": 5 * MEGABYTE}.items():
        lines = [f"X-Padding-{i}: {'x' * 50_000}" for i in range(size // 50_000)]
        found = target.raw(target.head("GET", "/v1/models", target.bearer, *lines))
        if found.status != 0:  # to hang up on it is an answer, too
            yield from refused(f"headers of {what}", found, (400, 413, 431))
    found = target.raw(target.head("GET", "/v1/models?" + "x" * 30_000, target.bearer))
    yield from refused("an address of 30 kB", found, (400, 414, 431))
    for value in ("-1", "+5", "5, 6", "0x5", "9" * 40, "٣".encode().decode("latin-1")):
        head = target.head("POST", path, target.bearer, f"Content-Length: {value}")
        yield from refused(f"Content-Length: {value[:9]}", target.raw(head), (400, 413))
    both = ("Content-Length: 5", "Transfer-Encoding: chunked", "Connection: close")
    smuggled = target.raw(target.head("POST", path, target.bearer, *both), b"0\r\n\r\n")
    yield from refused("two lengths", smuggled)
    parts = [("messages", (None, "x"))] * 20_000
    yield from refused("20,000 parts of a form", target.send("POST", path, files=parts))


def odd_bodies(target: Target) -> Iterator[str]:
    """R4: bodies that parsers fall over."""
    for path, call in target.calls.items():
        body = json.dumps(call)[:-1]
        many = ", ".join(f'"x{i}": 1' for i in range(10_000))
        wrong = {
            "nothing": b"",
            "half a JSON": body.encode(),
            "100,000 brackets": b"[" * 100_000,
            "100,000 objects in each other": b'{"model":' * 100_000,
            "a number of 100,000 digits": f'{body}, "seed": {"9" * 100_000}}}'.encode(),
            "n twice": f'{body}, "n": 1, "n": 1000000}}'.encode(),
            "bytes that are no UTF-8": body.encode() + b', "user": "\xff\xfe"}',
            "a list": b"[]",
            "a text": b'"x"',
            "half a character as the model": b'{"model": "\\ud800"}',
        }
        for what, content in wrong.items():
            yield from refused(f"{path}: {what}", _post(target, path, content))
        for what, content in {
            "half a character": json.dumps(call).replace("hello", "\\ud83d hello").encode(),
            "UTF-16": (body + "}").encode("utf-16"),
            "NUL": json.dumps(call).replace("hello", "\\u0000 hello").encode(),
            "extra fields in each other": f'{body}, "x": {"[" * 500}{"]" * 500}}}'.encode(),
            "a field of half a character": f'{body}, "\\udfff": 1}}'.encode(),
            "a field with a line break": f'{body}, "a\\r\\nX-Injected: 1": 1}}'.encode(),
            "a field in Chinese": f'{body}, "温度": 1}}'.encode(),
            "10,000 fields": f"{body}, {many}}}".encode(),
        }.items():
            found = _post(target, path, content)
            yield from unharmed(f"{path}: {what}", found)
            if "x-injected" in found.headers:
                yield f"{path}: {what}: it became a header of the answer"


def slow_clients(target: Target) -> Iterator[str]:
    """R4: others must not wait for those who send a byte now and then."""
    path = next(iter(target.calls))
    head = target.head("POST", path, target.bearer, "Content-Length: 1000")
    every = [target.plug() for _ in range(SLOW_CLIENTS)]
    plugs = [one.__enter__() for one in every]
    try:
        for index, plug in enumerate(plugs):
            plug.sendall(head if index % 2 else head[:20])
        time.sleep(SETTLE_SECONDS)  # or the call is answered before anybody is in its way
        found = target.ask()
        if found.status != 200 or found.seconds > WAIT_SECONDS:
            yield f"{SLOW_CLIENTS} slow clients: others get {found.status} in {found.seconds:.1f} s"
    finally:
        for one in every:
            one.__exit__(None, None, None)


def long_texts(target: Target) -> Iterator[str]:
    """R5: texts that are slow to tokenise; meanwhile others are answered."""
    texts = {
        "8 MB without a space": "a" * 8 * MEGABYTE,
        "4 MB of line breaks": "\n" * 4 * MEGABYTE,
        "4 MB of spaces": " " * 4 * MEGABYTE,
        "6 MB of Chinese": "中" * 2 * MEGABYTE,
        "6 MB that NFKC makes six times longer": "\ufdfa" * 2 * MEGABYTE,
        "4 MB of combining marks": "e" + "\u0301" * 2 * MEGABYTE,
        "4 MB of emoji": "👩‍👩‍👧" * (MEGABYTE // 5),
    }
    path = next(iter(target.calls))
    name = "prompt" if path == "/v1/completions" else "text"
    for what, text in texts.items():
        said = [{"role": "user", "content": text}]
        fields = {"messages": said} if path.endswith("chat/completions") else {name: text}
        waits: list[float] = []
        with watched(target, waits):
            found = target.ask(path, **fields)
        yield from refused(what, found)
        if max(waits, default=0.0) > WAIT_SECONDS:
            yield f"{what}: meanwhile others wait for {max(waits):.1f} s"
    found = target.send(
        "POST", "/v1/tokenize", json={"model": target.model, "text": texts["8 MB without a space"]}
    )
    yield from unharmed("8 MB to tokenize", found)


def many_stops(target: Target) -> Iterator[str]:
    """R7."""
    for path in target.calls:
        for what, stop in {
            "10,000 texts": ["x" * 10 for _ in range(10_000)],
            "a text of 1 MB": ["x" * MEGABYTE],
            "an empty text": [""],
            "a number": 7,
            "texts in each other": [["x"]],
        }.items():
            yield from refused(f"{path} with stop={what}", target.ask(path, stop=stop))
        found = target.ask(path, stop=["\u0000never" * 20] * 16)
        yield from unharmed(f"{path} with a stop that never comes", found)


def _post(target: Target, path: str, content: bytes) -> Answer:
    headers = {"Content-Type": "application/json"}
    return target.send("POST", path, content=content, headers=headers)


def _endless(target: Target, path: str) -> Answer:
    """The answer to a body of chunks that goes on and on, up to BODY_MEGABYTES."""
    lines = ("Transfer-Encoding: chunked", "Content-Type: application/json")
    chunk = f"{MEGABYTE:x}\r\n".encode() + b" " * MEGABYTE + b"\r\n"
    return target.raw(target.head("POST", path, target.bearer, *lines), chunk * BODY_MEGABYTES)
