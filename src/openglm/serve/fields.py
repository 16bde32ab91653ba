"""`Wire`: what every request has; and which fields of one do nothing, wherever they stand in it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from difflib import get_close_matches
from itertools import islice
from typing import Any

from pydantic import BaseModel, ConfigDict

MOST_IGNORED, LONGEST_NAME = 16, 64
"""So many are named in a header, with so many characters; longer ones are nothing that is known."""


class Wire(BaseModel):
    """What every request has: fields that are not known are taken, and named in the response."""

    model_config = ConfigDict(extra="allow")

    def unread(self) -> Iterator[str]:
        """Names of fields that were given and do nothing; those inside others have dots."""
        known = type(self).model_fields
        extra = self.model_extra or {}
        for name in sorted(name for name, value in extra.items() if value is not None):
            yield with_near(name, known)
        for name, field in known.items():
            value, shown = getattr(self, name), field.alias or name
            if isinstance(value, Wire):
                yield from (f"{shown}.{inner}" for inner in value.unread())
            elif isinstance(value, list) and value and isinstance(value[0], Wire):
                for index, one in enumerate(value):
                    yield from (f"{shown}.{index}.{inner}" for inner in one.unread())


def ignored(request: Wire) -> list[str]:
    """The first of `Wire.unread`, each with a name that may have been meant."""
    return list(islice(request.unread(), MOST_IGNORED))


def unread(value: object, schema: Mapping[str, Any]) -> Iterator[str]:
    """Names of fields in JSON that a schema does not tell of; those inside others have dots."""
    for one in schema.get("anyOf", (schema,)):
        if isinstance(value, list) and "items" in one:
            for index, item in enumerate(value):
                yield from (f"{index}.{inner}" for inner in unread(item, one["items"]))
        elif isinstance(value, Mapping) and "properties" in one:
            known = one["properties"]
            for name, part in value.items():
                if part is None:
                    continue
                if name not in known:
                    yield with_near(name, known)
                else:
                    yield from (f"{name}.{inner}" for inner in unread(part, known[name]))


def with_near(name: str, known: Collection[str]) -> str:
    """As an item of a header with a parameter (RFC 8941)."""
    if len(name) > LONGEST_NAME:
        return name[:LONGEST_NAME]
    near = get_close_matches(name, known, n=1, cutoff=0.8)
    return f"{name};near={near[0]}" if near else name
