"""The lines of a batch: read, checked before any is answered, and answered."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openglm.serve.background.errands import Endpoint, find_endpoint
from openglm.serve.errors import ServeError
from openglm.serve.wire import new_id

MOST_LINES = 50_000
MOST_PROBLEMS = 100
"""That are told of one file."""
MOST_ID_CHARACTERS = 256
JSON_ERRORS = (ValueError, RecursionError)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a batch.

    Args:
        number: from 1.
        custom_id: the client's name for it.
        endpoint: that is asked.
        body: what it is asked.
    """

    number: int
    custom_id: str
    endpoint: Endpoint
    body: Any

    def answer(self, status: int, body: dict[str, Any]) -> str:
        """The line that answers it."""
        response = {"status_code": status, "request_id": new_id("req-"), "body": body}
        return self._written(response, None)

    def unanswered(self, code: str, message: str) -> str:
        """The line that says why nothing answers it."""
        return self._written(None, {"code": code, "message": message})

    def _written(self, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
        name = {"id": new_id("batch_req_"), "custom_id": self.custom_id}
        return json.dumps({**name, "response": response, "error": error}, allow_nan=False)


def lines(path: Path, without: Container[int] = ()) -> Iterator[Line]:
    """The lines of a checked file, but those of some numbers."""
    for number, raw in _raw_lines(path):
        if number not in without:
            yield _parse(number, raw)


def check(path: Path, endpoint: Endpoint) -> tuple[list[dict[str, Any]], int]:
    """What is wrong with a file, as clients read it, and how many lines it has.

    Args:
        path: of the file.
        endpoint: that each line must ask, in whatever dialect.
    """
    problems: list[dict[str, Any]] = []
    seen: set[str] = set()
    count = 0
    for number, raw in _raw_lines(path):
        count += 1
        if count > MOST_LINES:
            problems.append(_problem(f"the file has more than {MOST_LINES} lines", None, None))
            break
        try:
            line = _parse(number, raw)
            if line.endpoint.name != endpoint.name:
                message = f"url asks {line.endpoint.name}, the batch {endpoint.name}"
                raise ServeError("invalid_field", message, "url")
            if line.custom_id in seen:
                message = f"custom_id {line.custom_id!r} was given before"
                raise ServeError("invalid_field", message, "custom_id")
            seen.add(line.custom_id)
        except ServeError as error:
            problems.append(_problem(error.message, number, error.param))
            if len(problems) >= MOST_PROBLEMS:
                break
    if not count:
        problems.append(_problem("the file has no lines", None, None))
    return problems, count


def _raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, with their numbers."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, raw


def _parse(number: int, raw: bytes) -> Line:
    try:
        found = json.loads(raw)
    except JSON_ERRORS as error:
        raise ServeError("invalid", f"the line is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ServeError("invalid", "the line is no JSON object")
    custom_id = found.get("custom_id")
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MOST_ID_CHARACTERS:
        message = f"custom_id must be a text of 1 to {MOST_ID_CHARACTERS} characters"
        raise ServeError("missing_field", message, "custom_id")
    if found.get("method", "POST") != "POST":
        raise ServeError("invalid_field", "method must be POST", "method")
    if not isinstance(found.get("body"), dict):
        raise ServeError("missing_field", "body must be a JSON object", "body")
    return Line(number, custom_id, find_endpoint(found.get("url")), found["body"])


def _problem(message: str, line: int | None, param: str | None) -> dict[str, Any]:
    return {"code": "invalid_line", "message": message, "line": line, "param": param}
