"""JSON web tokens as BigModel's clients sign them with the secret of their key.

The header is `{"alg": "HS256", "sign_type": "SIGN"}`, the payload `api_key` (the id), `exp` and
`timestamp`, both in milliseconds. A JWT library reads `exp` as seconds and would accept the token
for the next 50,000 years, so the times are checked here and the library only checks the signature.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jwt

from openglm.serve.identity import AuthenticationFailed

MAX_CHARACTERS = 512
"""Of a token; zhipuai's have 250. So short, its JSON cannot be nested deep enough to do harm."""
SKEW_MS = 5 * 60 * 1000
"""How far the client's clock may be off. A token is good for no longer than that, either."""
MAX_LIFETIME_MS = 60 * 60 * 1000
"""Furthest `exp`; zhipuai's tokens live 210 s, ChatZhipuAI's 180 s."""
UNVERIFIED = {"verify_signature": False}
SIGNATURE_ONLY = {
    "verify_signature": True,
    **dict.fromkeys(
        [f"verify_{claim}" for claim in ("exp", "nbf", "iat", "aud", "iss", "sub", "jti")], False
    ),
}


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of itself; times in milliseconds since 1970."""

    key_id: str
    expires_ms: int
    signed_ms: int


def read_claims(token: str) -> Claims:
    """The claims of a token whose signature is not checked yet.

    Raises:
        AuthenticationFailed: "malformed": it is too long, no token, signed by another algorithm, or
            lacks a claim.
    """
    if len(token) > MAX_CHARACTERS:
        raise AuthenticationFailed("malformed")
    try:
        parts = jwt.decode_complete(token, options=UNVERIFIED)  # type: ignore[arg-type]
    except jwt.PyJWTError as error:
        raise AuthenticationFailed("malformed") from error
    header, payload = parts["header"], parts["payload"]
    if header.get("alg") != "HS256" or header.get("sign_type") != "SIGN":
        raise AuthenticationFailed("malformed")
    claims = (payload.get("api_key"), payload.get("exp"), payload.get("timestamp"))
    if tuple(map(type, claims)) != (str, int, int):  # a boolean is no int here
        raise AuthenticationFailed("malformed")
    return Claims(*claims)


def is_signed_with(token: str, secret: str) -> bool:
    """Whether the HMAC is right; compared in constant time by the library."""
    options: Any = SIGNATURE_ONLY
    try:
        jwt.decode(token, secret, algorithms=["HS256"], options=options)
    except jwt.PyJWTError:
        return False
    return True


def seconds_left(claims: Claims, now_ms: int) -> float:
    """How long a genuine token is still good.

    `exp` is taken at its word; the skew allows for a clock that is behind or ahead in `timestamp`.

    Raises:
        AuthenticationFailed: "expired", or "malformed" for times too far in the future.
    """
    if claims.signed_ms > now_ms + SKEW_MS or claims.expires_ms > now_ms + MAX_LIFETIME_MS:
        raise AuthenticationFailed("malformed")
    left_ms = min(claims.expires_ms, claims.signed_ms + SKEW_MS) - now_ms
    if left_ms <= 0:
        raise AuthenticationFailed("expired")
    return left_ms / 1000
