"""Attacks with many connections, with grammars, and with chance."""

from __future__ import annotations

import contextlib
import json
import random
import re
import socket
import time
from collections.abc import Iterator
from typing import Any

from openglm.attacks.attack import WAIT_SECONDS, refused, unharmed, watched
from openglm.attacks.target import Answer, NotApplicable, Target

FREE_SECONDS = 15.0
"""Within which places must be free again that clients left behind."""
WINDOW_BYTES = 4096
"""Of a client that hardly reads; the server's own buffers come on top."""
CROWD_SECONDS = 300.0
"""Until the server has looked at all that came at once; from then on they are idle."""
SPARE_FILES = 64
"""That this process may need beside its connections."""
GROWTH_BYTES = 1 << 28
"""Of the server's memory in the second half of the mutations: 5 kB each, if they are 100,000."""
SEED = 20_261_121
"""Of the mutations: every run tries the same."""
MEMORY = re.compile(r"^process_resident_memory_bytes (\S+)", re.M)
GAUGES = re.compile(r"^(?:openglm_|vllm:)num_requests_(?:running|waiting)\{[^}]*\} (\S+)", re.M)
EVIL: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 2**64, 10**30, 1e308, -0.0, 1.5, "", "x", "\u0000", "\u2028",
    "<|user|>", "../../etc/passwd", "${jndi:x}", "%s%n", "x" * 10_000, [], [[]], [None], [1] * 1000,
    {}, {"": {}}, {"$ref": "#"}, {"type": "function"}, [{"role": "user"}], [{"role": "tool"}],
    [{"role": "assistant", "tool_calls": [{}]}], [{"type": "text"}], "\ud83d",
)  # fmt: skip
FIELDS = (
    "model", "messages", "prompt", "text", "suffix", "stream", "stream_options", "temperature",
    "top_p", "n", "best_of", "stop", "seed", "echo", "presence_penalty", "frequency_penalty",
    "logit_bias", "logprobs", "top_logprobs", "top_k", "min_p", "typical_p", "repetition_penalty",
    "no_repeat_ngram_size", "min_tokens", "bad_words", "tools", "tool_choice", "response_format",
    "max_completion_tokens", "request_id", "user_id", "do_sample", "meta", "extra", "user",
    "\u0000",
)  # fmt: skip


def grammars(target: Target) -> Iterator[str]:
    """R6: schemas that are slow or endless to compile, or not understood."""
    path = next((p for p in target.calls if p.endswith("chat/completions")), None)
    if path is None:
        raise NotApplicable("no chat model here: only chats take schemas and tools")
    for what, schema in _bombs().items():
        asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        waits: list[float] = []
        with watched(target, waits):
            found = target.ask(path, response_format=asked)
        yield from _survived(what, found)
        if max(waits, default=0.0) > WAIT_SECONDS:
            yield f"{what}: meanwhile others wait for {max(waits):.1f} s"
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        named = {"type": "function", "function": {"name": "f"}}
        found = target.ask(path, tools=[tool], tool_choice=named)
        yield from _survived(f"a tool with {what}", found)
    wrong: dict[str, dict[str, Any]] = {
        "no function": {"type": "function"},
        "no name": {"type": "function", "function": {}},
        "a name of 10,000 letters": {"type": "function", "function": {"name": "f" * 10_000}},
        "a name with a line break": {"type": "function", "function": {"name": "f\n<|user|>"}},
        "parameters of text": {"type": "function", "function": {"name": "f", "parameters": "x"}},
        "an unknown type": {"type": "\u0000", "function": {"name": "f"}},
    }
    for what, tool in wrong.items():
        yield from refused(f"a tool with {what}", target.ask(path, tools=[tool]))
    deep: Any = {}
    for _ in range(400):
        deep = {"properties": deep}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    yield from unharmed("a tool 400 levels deep", target.ask(path, tools=[tool]))


def idle_streams(target: Target) -> Iterator[str]:
    """R8: clients that ask and do not read; that some of them are closed is a defence."""
    streams = target.counts.streams
    _open_files(streams + SPARE_FILES)
    with contextlib.ExitStack() as stack:
        for _ in range(streams):
            with contextlib.suppress(ConnectionError):
                plug = stack.enter_context(target.plug(window=WINDOW_BYTES))
                _ask_for_a_stream(target, plug)
        head = target.head("GET", "/health", "Connection: close")
        end = time.monotonic() + CROWD_SECONDS
        while target.raw(head).status != 200 and time.monotonic() < end:
            time.sleep(1.0)
        found = target.raw(head)  # on a connection of its own: is there room for one?
        if found.status != 200 or found.seconds > WAIT_SECONDS:
            yield f"{streams} idle streams: /health gives {found.status} in {found.seconds:.1f} s"
        yield from unharmed(f"a call beside {streams} idle streams", target.ask(patience=0))
    yield from _is_free(target, f"{streams} idle streams were closed")


def disconnects(target: Target) -> Iterator[str]:
    """R9: clients that leave at any moment."""
    for index in range(target.counts.disconnects):
        with target.plug() as plug:
            _ask_for_a_stream(target, plug)
            if index % 3:
                plug.recv(1 if index % 3 == 1 else 1000)
    yield from _is_free(target, f"{target.counts.disconnects} clients left")


def fuzz(target: Target) -> Iterator[str]:
    """R13: mutations of valid calls, the same ones each time."""
    chance = random.Random(SEED)  # noqa: S311  # no secret comes of it
    rounds = target.counts.mutations
    memory = 0.0
    for number in range(rounds):
        if number == rounds // 2:  # caches are as large as they become
            memory = _memory(target)
        path, call = chance.choice(list(target.calls.items()))
        content = _mutated(call, chance)
        headers = {"Content-Type": "application/json"}
        found = target.send("POST", path, content=content, headers=headers)
        yield from unharmed(f"mutation {number} at {path}, {content[:200]!r}", found)
    growth = _memory(target) - memory
    if growth > GROWTH_BYTES:
        yield f"the second half of {rounds} mutations cost {growth / 1e6:.0f} MB of memory"


def _survived(what: str, found: Answer) -> Iterator[str]:
    """A schema may be understood; but it must not take long, nor be the server's fault."""
    yield from refused(what, found, (200, *range(400, 432)))


def _bombs() -> dict[str, Any]:
    """Schemas by what is wrong with them."""

    def doubled(name: str) -> dict[str, Any]:
        schema: Any = {"type": "string"}
        for _ in range(10):
            schema = {name: [schema, schema]}
        return dict(schema)

    text = {"type": "string"}
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}
    nodes: Any = {"type": "object", "properties": {f"p{i}": text for i in range(100_000)}}
    return {
        "a pattern that doubles": text | {"pattern": "(a+)+$"},
        "counts in counts": text | {"pattern": "((a{1,900}){1,900}){1,900}"},
        "an alternation in a loop": text | {"pattern": "(a|a|a|a|a|a|aa|aaa)*" * 50},
        "a pattern that is none": text | {"pattern": "(["},
        "a pattern of 60 kB": text | {"pattern": "(a|b)?" * 10_000},
        "10^9 items": {"type": "array", "items": text, "maxItems": 10**9, "minItems": 10**9},
        "10^9 letters": text | {"minLength": 10**9},
        "anyOf 10 deep": doubled("anyOf"),
        "oneOf 10 deep": doubled("oneOf"),
        "allOf 10 deep": doubled("allOf"),
        "a loop of references": loop,
        "a reference to itself": {"$ref": "#"},
        "a reference elsewhere": {"$ref": "http://127.0.0.1:9/x.json"},
        "a reference to a file": {"$ref": "file:///etc/passwd"},
        "100,000 properties": nodes,
        "250 optional properties": {
            "type": "object", "properties": {f"p{i}": text for i in range(250)},
        },
        "5,000 choices": {"enum": [f"choice number {i}" for i in range(5_000)]},
        "numbers from -1e300": {"type": "number", "minimum": -1e300, "maximum": 1e300},
        "a whole number of 300 digits": {"type": "integer", "minimum": 10**300},
        "a type that is none": {"type": "nothing"},
        "a type of a type": {"type": {"type": {}}},
        "half a character": {"enum": ["\ud800"]},
        "properties that are a list": {"type": "object", "properties": [1]},
    }  # fmt: skip


def _ask_for_a_stream(target: Target, plug: socket.socket) -> None:
    path, call = next(iter(target.calls.items()))
    body = json.dumps({**call, "stream": True, "max_tokens": 512}).encode()
    lines = (target.bearer, "Content-Type: application/json", f"Content-Length: {len(body)}")
    plug.sendall(target.head("POST", path, *lines) + body)


def _is_free(target: Target, what: str) -> Iterator[str]:
    """Says so if what clients left behind still runs, or holds their places."""
    end = time.monotonic() + FREE_SECONDS
    found, running = target.ask(patience=0), _running(target)
    while (found.status != 200 or running) and time.monotonic() < end:
        time.sleep(0.25)
        found, running = target.ask(patience=0), _running(target)
    if found.status != 200:
        yield f"{what}, and {FREE_SECONDS:g} s later a call gets {found.status}"
    if running:
        yield f"{what}, and {FREE_SECONDS:g} s later {running:g} requests still run"


def _running(target: Target) -> float:
    """Requests in work, if the server says how many."""
    return sum(map(float, GAUGES.findall(target.send("GET", "/metrics").text)))


def _memory(target: Target) -> float:
    """Bytes that the server takes, or 0 if it does not say."""
    return sum(map(float, MEMORY.findall(target.send("GET", "/metrics").text)))


def _open_files(most: int) -> None:
    """Allows this process to have so many open."""
    import resource  # not on Windows

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < most:
        raise NotApplicable(f"needs {most:,} open files, and may have {hard:,} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _mutated(call: Any, chance: random.Random) -> bytes:
    """A call with fields replaced, added or taken away, sometimes no JSON any more."""
    body = json.loads(json.dumps(call))
    for _ in range(chance.randint(1, 3)):
        name = chance.choice(FIELDS)
        body[name] = chance.choice(EVIL)
        if isinstance(body.get("messages"), list) and chance.random() < 0.3:
            message = {"role": chance.choice(["user", "system", "tool", "assistant", "king"])}
            message[chance.choice(["content", "tool_calls", "name", "x"])] = chance.choice(EVIL)
            body["messages"] = [message, *body["messages"]]
    content = json.dumps(body).encode()
    if chance.random() < 0.2:
        place = chance.randrange(len(content))
        content = content[:place] + bytes([chance.randrange(256)]) + content[place + 1 :]
    return content
