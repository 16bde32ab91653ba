"""What the server remembers, as tables. A change here needs a revision in `migrations/versions`.

Types are those that SQLite and PostgreSQL share. Times are unix seconds: SQLite has no time zones.
"""

from __future__ import annotations

import datetime

from sqlalchemy import BigInteger, LargeBinary, MetaData, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


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
