"""Lists of what a key has, page by page: each begins behind an id of the page before."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Generic, Literal, TypeVar, cast

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session
from typing_extensions import TypedDict

from openglm.serve.errors import ServeError
from openglm.serve.tables import File, Job

T = TypeVar("T", File, Job)
Item = TypeVar("Item", bound=Mapping[str, object])
ID = re.compile(r"[a-z]+[-_][0-9a-f]{32}")
MOST_LISTED = 10_000


class Page(BaseModel):
    """Which page is asked for.

    Args:
        after: the id that it begins behind.
        limit: rows at most.
        order: "desc" has the newest first.
    """

    model_config = ConfigDict(extra="ignore")

    after: str | None = None
    limit: Annotated[int, Field(ge=1, le=MOST_LISTED)] = 20
    order: Literal["asc", "desc"] = "desc"


PageQuery = Annotated[Page, Query()]


def find(session: Session, table: type[T], key_id: str, name: str) -> T:
    """A row of a key.

    Raises:
        ServeError: there is none; a row of somebody else is none.
    """
    found = None
    if ID.fullmatch(name):  # PostgreSQL takes no NUL in a text
        found = session.scalar(select(table).where(table.id == name, table.key_id == key_id))
    if found is None:
        raise ServeError("not_found", f"there is no {table.__name__.lower()} {name[:64]!r}")
    return found


def rows(
    session: Session, table: type[T], key_id: str, page: Page, *conditions: ColumnElement[bool]
) -> tuple[list[T], bool]:
    """A page of a key's rows, and whether there are more.

    Raises:
        ServeError: `page.after` is none of them.
    """
    query = select(table).where(table.key_id == key_id, *conditions)
    forward = page.order == "asc"
    if page.after is not None:
        last = find(session, table, key_id, page.after).number
        query = query.where(table.number > last if forward else table.number < last)
    query = query.order_by(table.number if forward else table.number.desc())
    found = list(session.scalars(query.limit(page.limit + 1)))
    return found[: page.limit], len(found) > page.limit


class Listed(TypedDict, Generic[Item]):
    """A page as clients of both dialects read it."""

    object: Literal["list"]
    data: list[Item]
    has_more: bool
    first_id: str | None
    last_id: str | None


def listed(data: Sequence[Item], has_more: bool) -> Listed[Item]:
    """A page for clients, of objects with ids."""
    return {
        "object": "list",
        "data": list(data),
        "has_more": has_more,
        "first_id": cast(str, data[0]["id"]) if data else None,
        "last_id": cast(str, data[-1]["id"]) if data else None,
    }
