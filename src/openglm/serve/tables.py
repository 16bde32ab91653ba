"""What the server remembers, as tables. A change here needs a revision in `migrations/versions`.

Types are those that SQLite and PostgreSQL share. Times are unix seconds: SQLite has no time zones.
"""

from __future__ import annotations

import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Integer, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

Number = BigInteger().with_variant(Integer, "sqlite")
"""Of rows in the order in which they came; SQLite counts only in columns of type INTEGER."""
Json = JSON(none_as_null=True)


class Base(DeclarativeBase):
    """All tables; constraints have names, by which migrations can find them again."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Key(Base):
    """A key, without what would be needed to use it.

    `salt` and `digest` check the secret. `encrypted_secret` is there for keys that may sign JSON
    web tokens, whose check needs the secret itself. Of the limits, None means the server's default.
    Revoked keys stay, for the usage that names them.
    """

    __tablename__ = "keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(8))
    salt: Mapped[bytes] = mapped_column(LargeBinary(16))
    digest: Mapped[bytes] = mapped_column(LargeBinary(32))
    encrypted_secret: Mapped[str | None] = mapped_column(Text)
    requests_per_minute: Mapped[int | None]
    concurrency: Mapped[int | None]
    tokens_per_day: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    last_used_at: Mapped[int | None] = mapped_column(BigInteger)
    revoked_at: Mapped[int | None] = mapped_column(BigInteger)


class Usage(Base):
    """What one key used on one day (UTC)."""

    __tablename__ = "usage"

    key_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    day: Mapped[datetime.date] = mapped_column(primary_key=True)
    prompt_tokens: Mapped[int] = mapped_column(BigInteger)
    completion_tokens: Mapped[int] = mapped_column(BigInteger)
    requests: Mapped[int] = mapped_column(BigInteger)


class File(Base):
    """A file that a key uploaded or that was made for it; its content lies in a folder.

    `name` is what the client calls it: data, and never a path.
    """

    __tablename__ = "files"

    number: Mapped[int] = mapped_column(Number, primary_key=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    key_id: Mapped[str] = mapped_column(String(32), index=True)
    name: Mapped[str] = mapped_column(Text)
    purpose: Mapped[str] = mapped_column(String(32))
    size: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)


class Job(Base):
    """Work that was accepted and is done later; see `openglm.serve.jobs`.

    `worker` holds an unfinished job until `due_at`, then anybody may take it. `state` is what its
    kind of work remembers on the way, `input_id` a file that it reads.
    """

    __tablename__ = "jobs"

    number: Mapped[int] = mapped_column(Number, primary_key=True)
    id: Mapped[str] = mapped_column(String(40), unique=True)
    key_id: Mapped[str] = mapped_column(String(32), index=True)
    kind: Mapped[str] = mapped_column(String(16))
    status: Mapped[str] = mapped_column(String(16), index=True)
    body: Mapped[dict[str, Any]] = mapped_column(Json)
    state: Mapped[dict[str, Any] | None] = mapped_column(Json)
    result: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error: Mapped[dict[str, Any] | None] = mapped_column(Json)
    input_id: Mapped[str | None] = mapped_column(String(40))
    attempts: Mapped[int]
    worker: Mapped[str | None] = mapped_column(String(32))
    due_at: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[int] = mapped_column(BigInteger)
    cancelling_at: Mapped[int | None] = mapped_column(BigInteger)
    finished_at: Mapped[int | None] = mapped_column(BigInteger)


class Answer(Base):
    """The answer to one line of an unfinished batch."""

    __tablename__ = "answers"

    job_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    line: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    is_good: Mapped[bool]
    text: Mapped[str] = mapped_column(Text)
