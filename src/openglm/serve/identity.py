"""Who makes a request, and the one way in which not being anybody is reported."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from openglm.errors import OpenGLMError

Role = Literal["user", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
Reason = Literal["missing", "malformed", "expired", "refused"]
MESSAGES: dict[Reason, str] = {
    "missing": "there is no Authorization header",
    "malformed": "the Authorization header holds neither a key nor a token of one",
    "expired": "the token has expired",
    "refused": "the key is not valid",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """The key behind a request.

    Args:
        key_id: its public half.
        name: what its owner called it.
        role: "admin" may also manage models and keys.
        requests_per_minute: None means the server's default, as for the next two.
        concurrency: requests at once.
        tokens_per_day: of prompts and answers together.
    """

    key_id: str
    name: str
    role: Role
    requests_per_minute: int | None = None
    concurrency: int | None = None
    tokens_per_day: int | None = None


class AuthenticationFailed(OpenGLMError):
    """A request without a valid key.

    An unknown id, a wrong secret or signature, and a revoked key are all "refused", in the same
    words: the answer must not tell which ids exist.

    Args:
        reason: what programs may learn.
    """

    def __init__(self, reason: Reason) -> None:
        super().__init__(MESSAGES[reason], hint="send Authorization: Bearer ID.SECRET")
        self.reason = reason


class NotPermitted(OpenGLMError):
    """A valid key whose role does not allow the request."""

    def __init__(self) -> None:
        super().__init__("this needs a key of the role admin", hint="glm keys create --role admin")
