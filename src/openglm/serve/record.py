"""`Record`: one request and what became of it, by an id that is in the answer and in the log.

Its line has no prompt, no answer, no query string, and of the key only its id. It is written when
the answer has ended, to the logger `openglm.requests` at the level INFO.
"""

from __future__ import annotations

import logging
import re
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

from openglm.log import logger
from openglm.serve.wire import new_id

requests = logging.getLogger("openglm.requests")
HEADER = "X-Request-Id"
CLIENTS_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What may stand in a header and in a log as it is."""
CLIENT_LEFT = 499
"""What nginx, too, notes of an answer that nobody waited for."""
MOST_PATH_CHARACTERS = 200
MOST_METHOD_CHARACTERS = 20
_KEY = "openglm.record"


@dataclass(slots=True)
class Record:
    """See the module.

    Args:
        id: the client's, if it is a good one, else a random one.

    Attributes:
        key_id: the public half of the key, once it is known.
        status: of HTTP, once the answer has begun.
        has_left: whether the client did before the answer ended, or does not read it.
        model: that was asked, and the tokens that it read and wrote.
        begun: by the monotonic clock.
    """

    id: str
    key_id: str | None = None
    status: int = 500
    has_left: bool = False
    model: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    begun: float = field(default_factory=time.monotonic)

    def write(self, scope: Scope) -> None:
        """Writes the line."""
        if not requests.isEnabledFor(logging.INFO):
            return
        found: dict[str, Any] = {
            "id": self.id,
            "key": self.key_id,
            "method": scope["method"][:MOST_METHOD_CHARACTERS],
            "path": path_of(scope),
            "status": CLIENT_LEFT if self.has_left else self.status,
            "seconds": round(time.monotonic() - self.begun, 4),
        }
        if self.model is not None:
            found["model"] = self.model
            found["prompt_tokens"] = self.prompt_tokens
            found["completion_tokens"] = self.completion_tokens
        requests.info("%(method)s %(path)s %(status)d", found)


def record_of(scope: Scope) -> Record:
    """The record of a request, made when it is first asked for."""
    found: Record | None = scope.get(_KEY)
    if found is None:
        own = [value for name, value in scope["headers"] if name == b"x-request-id"]
        is_good = len(own) == 1 and CLIENTS_ID.fullmatch(own[0])  # of two, others may take another
        found = scope[_KEY] = Record(own[0].decode() if is_good else new_id("req-"))
    return found


def report(scope: Scope, error: Exception) -> None:
    """Logs why a request failed for which its client cannot be blamed."""
    told = {"path": path_of(scope), "id": record_of(scope).id}
    logger.error("a request to %(path)s failed", told, exc_info=error)


def path_of(scope: Scope) -> str:
    """The path as its route is written, like /v1/files/{file_id}; without one, as it came, cut."""
    path: str = scope["path"]
    route = scope.get("route")
    if route is None:
        return ascii(path)[1:-1][:MOST_PATH_CHARACTERS]
    own: str = route.path  # without the prefix of its router
    depth = own.count("/") + sum(str(one).count("/") for one in scope["path_params"].values())
    return "/".join(path.split("/")[:-depth]) + own
