"""What each key used on each day, in the database."""

from __future__ import annotations

import datetime
from dataclasses import dataclass

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from openglm.serve.database import Database
from openglm.serve.tables import Usage

Place = tuple[str, datetime.date]
"""A key's id and a day (UTC)."""


@dataclass(slots=True)
class Count:
    """Tokens and requests."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0

    def add(self, other: Count) -> None:
        """Adds another count to this one."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.requests += other.requests


def read_usage(database: Database, place: Place) -> Count:
    """What was counted so far; zero if nothing was."""
    with database.reading() as session:
        row = session.get(Usage, place)
        if row is None:
            return Count()
        return Count(row.prompt_tokens, row.completion_tokens, row.requests)


def add_usage(database: Database, counts: dict[Place, Count]) -> None:
    """Adds all counts, or none if it fails.

    The sums are made by the database, so several servers may count into one row. Two that begin the
    same row at once collide; the second then finds the row of the first.
    """
    try:
        _add(database, counts)
    except IntegrityError:
        _add(database, counts)


def _add(database: Database, counts: dict[Place, Count]) -> None:
    with database.writing() as session:
        for (key_id, day), count in sorted(counts.items()):  # one order: no two block each other
            added = session.execute(
                update(Usage)
                .where(Usage.key_id == key_id, Usage.day == day)
                .values(
                    prompt_tokens=Usage.prompt_tokens + count.prompt_tokens,
                    completion_tokens=Usage.completion_tokens + count.completion_tokens,
                    requests=Usage.requests + count.requests,
                )
                .returning(Usage.key_id)
            )
            if added.first() is None:
                session.add(
                    Usage(
                        key_id=key_id,
                        day=day,
                        prompt_tokens=count.prompt_tokens,
                        completion_tokens=count.completion_tokens,
                        requests=count.requests,
                    )
                )
