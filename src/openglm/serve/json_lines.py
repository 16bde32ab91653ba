"""The log of a server for programs: one JSON object per line, tracebacks included."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from openglm.serve.record import requests


class JsonLines(logging.Formatter):
    """Writes time (UTC), level, logger and message, and the fields of a message that names some.

    These are of messages such as `logger.info("%(path)s was asked for", {"path": path})`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line, in ASCII."""
        day = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        found: dict[str, Any] = {
            "time": f"{day}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if isinstance(record.args, Mapping):
            found |= record.args
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str)


@contextmanager
def json_lines(of_requests: bool = True) -> Iterator[None]:
    """Logs to standard error as `JsonLines` while the block runs.

    Args:
        of_requests: a line for each of them, too.
    """
    root, handler = logging.getLogger(), logging.StreamHandler()
    handler.setFormatter(JsonLines())
    before, level = root.handlers, requests.level
    root.handlers = [handler]
    requests.setLevel(logging.INFO if of_requests else logging.WARNING)
    try:
        yield
    finally:
        root.handlers = before
        requests.setLevel(level)
