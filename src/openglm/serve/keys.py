"""API keys: made, listed, revoked, and found behind an `Authorization` header.

A key reads `ID.SECRET`, as BigModel's do. Clients send it whole, or sign JSON web tokens with it.

The database holds a salted BLAKE2b digest of each secret. A slow hash, as for passwords, would
defend against guessing; secrets of 192 random bits cannot be guessed at any speed, and a slow hash
would only let strangers keep the server busy.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from sqlalchemy import select, update

from openglm.errors import UsageError, suggest
from openglm.home import home
from openglm.log import logger
from openglm.serve.database import Database
from openglm.serve.identity import ROLES, AuthenticationFailed, Identity, Role
from openglm.serve.tables import Key
from openglm.serve.vault import Vault
from openglm.serve.verified import Verified
from openglm.serve.web_token import MAX_CHARACTERS, is_signed_with, read_claims, seconds_left

ID_BYTES = 16
SECRET_BYTES = 24  # 32 characters, the 256 bits that HS256 asks for at least
ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
SECRET = re.compile(r"[A-Za-z0-9_-]{1,128}")
MAX_NAME_CHARACTERS = 64
MAX_LIMIT = 2**31 - 1  # of a 32-bit column
LAST_USE_SECONDS = 60
"""How exactly `last_used_at` is kept: writing it at every request would cost more than it tells."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """A key as it is listed; nothing here opens anything. Times are unix seconds."""

    id: str
    name: str
    role: Role
    signs_tokens: bool
    requests_per_minute: int | None
    concurrency: int | None
    tokens_per_day: int | None
    created_at: int
    last_used_at: int | None
    revoked_at: int | None


class KeyStore:
    """The keys of a database. Methods block, except `cached`; all are safe for threads.

    Args:
        database: where the keys are.
        master_key_file: encrypts the secrets of keys that sign tokens; made if it is missing. By
            default `serve.key` in the user folder.
        now: the wall clock, in seconds since 1970.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        database: Database,
        master_key_file: Path | None = None,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._vault = Vault(master_key_file or home() / "serve.key")
        self._now = now
        self._verified = Verified(clock)
        self._nobody, _ = self._new_key("nobody", "user", signs_tokens=True)

    def create(
        self,
        name: str,
        role: Role = "user",
        *,
        requests_per_minute: int | None = None,
        concurrency: int | None = None,
        tokens_per_day: int | None = None,
        signs_tokens: bool = True,
    ) -> str:
        """Makes a key and returns it as `ID.SECRET`; it cannot be shown again.

        Args:
            name: for people, 1 to 64 printable characters.
            role: "user" or "admin".
            requests_per_minute: None means the server's default, as for the next two.
            concurrency: requests at once.
            tokens_per_day: of prompts and answers together.
            signs_tokens: whether JSON web tokens signed with it are accepted, as BigModel's clients
                send them. The secret is then kept encrypted, else only its digest.

        Raises:
            UsageError: a name, role or limit outside of these.
        """
        if not 1 <= len(name) <= MAX_NAME_CHARACTERS or not name.isprintable():
            raise UsageError(
                f"the name {name[:MAX_NAME_CHARACTERS]!r} must have 1 to {MAX_NAME_CHARACTERS} "
                "characters, all printable"
            )
        if role not in ROLES:
            raise UsageError(f"there is no role {role!r}", hint=suggest(role, ROLES))
        key, secret = self._new_key(name, role, signs_tokens)
        limits = {
            "requests_per_minute": requests_per_minute,
            "concurrency": concurrency,
            "tokens_per_day": tokens_per_day,
        }
        for limit, value in limits.items():
            if value is not None and not 1 <= value <= MAX_LIMIT:
                raise UsageError(f"{limit}={value} must be between 1 and {MAX_LIMIT}")
            setattr(key, limit, value)
        with self._database.writing() as session:
            session.add(key)
        return f"{key.id}.{secret}"

    def _new_key(self, name: str, role: Role, signs_tokens: bool) -> tuple[Key, str]:
        secret = secrets.token_urlsafe(SECRET_BYTES)
        salt = secrets.token_bytes(hashlib.blake2b.SALT_SIZE)
        key = Key(
            id=secrets.token_hex(ID_BYTES),
            name=name,
            role=role,
            salt=salt,
            digest=_digest(secret, salt),
            encrypted_secret=self._vault.encrypt(secret) if signs_tokens else None,
            created_at=int(self._now()),
        )
        return key, secret

    def list_keys(self) -> list[KeyInfo]:
        """All keys, the revoked ones too, oldest first."""
        with self._database.reading() as session:
            keys = session.scalars(select(Key).order_by(Key.created_at, Key.id)).all()
        return [_info(key) for key in keys]

    def revoke(self, key_id: str) -> KeyInfo:
        """Ends a key: here at once, in other processes within `verified.SECONDS`.

        Raises:
            UsageError: there is no such key.
        """
        with self._database.writing() as session:
            key = session.get(Key, key_id)
            if key is None:
                raise UsageError(f"there is no key {key_id!r}", hint="glm keys list")
            if key.revoked_at is None:
                key.revoked_at = int(self._now())
        self._verified.forget(key_id)
        return _info(key)

    def identity(self, key_id: str) -> Identity:
        """A key that was verified before, for work that it asked for then.

        Raises:
            AuthenticationFailed: it was revoked since.
        """
        key = self._find(key_id)
        if key is self._nobody or key.revoked_at is not None:
            raise AuthenticationFailed("refused")
        return _identity(key)

    def cached(self, authorization: str | None) -> Identity | None:
        """Whose header this is, if it was verified within the last seconds; asks no database.

        Raises:
            AuthenticationFailed: the header is missing or malformed.
        """
        return self._verified.get(_credential(authorization))

    def verify(self, authorization: str | None) -> Identity:
        """Whose key an `Authorization` header holds.

        Args:
            authorization: `ID.SECRET` or a token signed with it, with or without `Bearer` before
                it: BigModel's own client sends it with, LangChain's ChatZhipuAI without.

        Raises:
            AuthenticationFailed: nobody's.
        """
        credential = _credential(authorization)
        found = self._verified.get(credential)
        if found is not None:
            return found
        generation = self._verified.generation
        check = self._check_token if credential.count(".") == 2 else self._check_key
        key, seconds = check(credential)
        identity = _identity(key)
        self._verified.put(credential, identity, seconds, generation)
        self._note_use(key)
        return identity

    def _check_key(self, credential: str) -> tuple[Key, float]:
        """The key of `ID.SECRET`, and for how many seconds that holds."""
        key_id, _, secret = credential.partition(".")
        if not ID.fullmatch(key_id) or not SECRET.fullmatch(secret):
            raise AuthenticationFailed("malformed")
        key = self._find(key_id)
        is_right = hmac.compare_digest(_digest(secret, key.salt), key.digest)
        if not is_right or key.revoked_at is not None:
            raise AuthenticationFailed("refused")
        return key, float("inf")

    def _check_token(self, token: str) -> tuple[Key, float]:
        """The key that signed a token, and for how many seconds that holds."""
        claims = read_claims(token)
        if not ID.fullmatch(claims.key_id):
            raise AuthenticationFailed("malformed")
        key = self._find(claims.key_id)
        # A key that signs no tokens is treated as one that nobody knows the secret of.
        encrypted = key.encrypted_secret or self._nobody.encrypted_secret
        assert encrypted is not None
        secret = self._vault.decrypt(encrypted)
        if secret is None:
            logger.error(
                "the secret of key %s was encrypted under another master key than %s: tokens "
                "signed with it are refused",
                key.id,
                self._vault.path,
            )
            raise AuthenticationFailed("refused")
        if not is_signed_with(token, secret) or key.revoked_at is not None:
            raise AuthenticationFailed("refused")
        return key, seconds_left(claims, int(self._now() * 1000))

    def _find(self, key_id: str) -> Key:
        """The key, or for an unknown id one that fits nothing: both are then checked alike."""
        with self._database.reading() as session:
            return session.get(Key, key_id) or self._nobody

    def _note_use(self, key: Key) -> None:
        now = int(self._now())
        if key.last_used_at is None or now - key.last_used_at >= LAST_USE_SECONDS:
            with self._database.writing() as session:
                session.execute(update(Key).where(Key.id == key.id).values(last_used_at=now))


def _credential(authorization: str | None) -> str:
    """What stands in the header, without its scheme."""
    if not authorization:
        raise AuthenticationFailed("missing")
    scheme, _, rest = authorization.strip().partition(" ")
    credential = rest.strip() if scheme.lower() == "bearer" else authorization.strip()
    if not credential.isascii() or not 0 < len(credential) <= MAX_CHARACTERS:
        raise AuthenticationFailed("malformed")
    return credential


def _digest(secret: str, salt: bytes) -> bytes:
    return hashlib.blake2b(secret.encode(), digest_size=32, salt=salt).digest()


def _identity(key: Key) -> Identity:
    return Identity(
        key_id=key.id,
        name=key.name,
        role=cast(Role, key.role),
        requests_per_minute=key.requests_per_minute,
        concurrency=key.concurrency,
        tokens_per_day=key.tokens_per_day,
    )


def _info(key: Key) -> KeyInfo:
    return KeyInfo(
        id=key.id,
        name=key.name,
        role=cast(Role, key.role),
        signs_tokens=key.encrypted_secret is not None,
        requests_per_minute=key.requests_per_minute,
        concurrency=key.concurrency,
        tokens_per_day=key.tokens_per_day,
        created_at=key.created_at,
        last_used_at=key.last_used_at,
        revoked_at=key.revoked_at,
    )
