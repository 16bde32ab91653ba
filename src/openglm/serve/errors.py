"""Errors of the server, and how each dialect says them.

Each error has a kind; a table gives its HTTP status and what OpenAI and BigModel call it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openglm.errors import ContextOverflow, OpenGLMError, RequestError, TokenizerError
from openglm.serve.identity import AuthenticationFailed, NotPermitted, Reason
from openglm.serve.limits import LimitReached

Kind = Literal[
    "no_key",
    "malformed_key",
    "expired",
    "authentication",
    "permission",
    "invalid",
    "missing_field",
    "invalid_field",
    "unknown_model",
    "unsupported",
    "context_length",
    "not_found",
    "method",
    "not_available",
    "duplicate",
    "too_large",
    "concurrency",
    "rate",
    "tokens",
    "queue",
    "internal",
    "unavailable",
    "timeout",
]


@dataclass(frozen=True, slots=True)
class Saying:
    """How an error is said.

    Args:
        status: of HTTP.
        openai_type: `error.type` in /v1.
        openai_code: `error.code` in /v1, or None.
        bigmodel_code: `error.code` in BigModel's API, of its published list.
        bigmodel_status: of HTTP there, if it is another.
    """

    status: int
    openai_type: str
    openai_code: str | None
    bigmodel_code: str
    bigmodel_status: int | None = None


LATER_SECONDS = 300.0
"""When to ask again for what somebody must mend first. OpenAI's clients wait by themselves for two
minutes at most; of more they tell their users at once."""
INVALID = "invalid_request_error"
SAYINGS: Mapping[Kind, Saying] = {
    "no_key": Saying(401, INVALID, "invalid_api_key", "1001"),
    "malformed_key": Saying(401, INVALID, "invalid_api_key", "1002"),
    "authentication": Saying(401, INVALID, "invalid_api_key", "1000"),
    "expired": Saying(401, INVALID, "invalid_api_key", "1003"),
    "permission": Saying(403, "permission_error", "forbidden", "1220"),
    "invalid": Saying(400, INVALID, None, "1210"),
    "missing_field": Saying(400, INVALID, "missing_required_parameter", "1213"),
    "invalid_field": Saying(400, INVALID, "invalid_value", "1214"),
    "unknown_model": Saying(404, INVALID, "model_not_found", "1211", 400),
    "unsupported": Saying(400, INVALID, "unsupported_parameter", "1212"),
    "context_length": Saying(400, INVALID, "context_length_exceeded", "1261"),
    "not_found": Saying(404, INVALID, "not_found", "1222"),
    "method": Saying(405, INVALID, "method_not_allowed", "1222"),
    "not_available": Saying(404, INVALID, "not_available", "1222"),
    "duplicate": Saying(400, INVALID, "duplicate_request", "1231"),
    "too_large": Saying(413, INVALID, "too_large", "1210"),
    "concurrency": Saying(429, "rate_limit_error", "concurrency_limit_exceeded", "1302"),
    "rate": Saying(429, "rate_limit_error", "rate_limit_exceeded", "1303"),
    "internal": Saying(500, "server_error", "internal_error", "1230"),
    "tokens": Saying(429, "rate_limit_error", "insufficient_quota", "1304"),
    "queue": Saying(429, "rate_limit_error", "overloaded", "1305"),
    "unavailable": Saying(503, "server_error", "unavailable", "1305"),
    "timeout": Saying(408, INVALID, "timeout", "1234"),
}


REASONS: Mapping[Reason, Kind] = {
    "missing": "no_key",
    "malformed": "malformed_key",
    "expired": "expired",
    "refused": "authentication",
}


PROMPT_FIELDS = {
    "chat/completions": "messages",
    "completions": "prompt",
    "fill": "text",
    "embeddings": "input",
}
"""What is at fault in a call of an endpoint that is too long for a model."""


class ServeError(OpenGLMError):
    """An answer that is an error.

    Args:
        kind: a key of `SAYINGS`.
        message: for the client.
        param: name of the field at fault.
        retry_after: seconds after which to try again.
    """

    def __init__(
        self, kind: Kind, message: str, param: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.param = param
        self.retry_after = retry_after


class ClientGone(OpenGLMError):
    """Nobody is there to be answered."""


class UnknownModel(RequestError):
    """A name that no model is served under."""


def as_serve_error(error: Exception, endpoint: str = "") -> ServeError:
    """What a client may know of any error: of those that it did not cause, nothing.

    Args:
        error: to be told.
        endpoint: that was called, by its path without the prefix of the dialect.
    """
    if isinstance(error, ServeError):
        return error
    if isinstance(error, LimitReached):
        return ServeError(error.kind, str(error), retry_after=error.retry_after)
    if isinstance(error, AuthenticationFailed):
        return ServeError(REASONS[error.reason], str(error))
    if isinstance(error, NotPermitted):
        return ServeError("permission", str(error))
    if isinstance(error, UnknownModel):
        return ServeError("unknown_model", str(error), "model")
    if isinstance(error, ContextOverflow):
        return ServeError("context_length", str(error), PROMPT_FIELDS.get(endpoint))
    if isinstance(error, RequestError | TokenizerError):  # texts that cannot be encoded, too
        return ServeError("invalid", str(error))
    return ServeError("internal", "the server failed at this request; its log says why")


def say(error: ServeError, is_bigmodel: bool) -> tuple[int, dict[str, Any]]:
    """HTTP status and JSON of an error in a dialect."""
    saying = SAYINGS[error.kind]
    if is_bigmodel:
        return saying.bigmodel_status or saying.status, bigmodel_body(error)
    return saying.status, openai_body(error)


def openai_body(error: ServeError) -> dict[str, Any]:
    """The JSON of an error in /v1."""
    saying = SAYINGS[error.kind]
    return {
        "error": {
            "message": error.message,
            "type": saying.openai_type,
            "param": error.param,
            "code": saying.openai_code,
        }
    }


def bigmodel_body(error: ServeError) -> dict[str, Any]:
    """The JSON of an error in /api/paas/v4."""
    return {"error": {"code": SAYINGS[error.kind].bigmodel_code, "message": error.message}}
