"""What is wrong with a body that does not fit its model, in words that its writer can act on."""

from __future__ import annotations

import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openglm.serve.errors import ServeError

NOT_JSON = "the body must be a JSON object, sent with Content-Type: application/json"


def invalid_body(found: Sequence[Any], body: object = None) -> ServeError:
    """The error that stands for pydantic's list of what is wrong.

    Only the first field at fault is named, with all types that it may have, and what is wrong
    deepest inside it; the others are seen when it is mended.

    Args:
        found: as `ValidationError.errors` gives it.
        body: what was read, if it could be. A field that may have several types has an error of
            each, whose place ends with the name of the type; only the body tells names from fields.
    """
    first: dict[str, Any] = found[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", first["msg"])
        return ServeError("invalid", f"the body is not JSON: {why}{_position(first['loc'])}")
    root = _field(first, body)
    inside = [(field, one) for one in found if (field := _field(one, body))[: len(root)] == root]
    parts, worst = max(inside, key=lambda pair: len(pair[0]))  # the first of several
    where = ".".join(map(str, parts)) or None
    if worst["type"] == "missing":
        return ServeError("missing_field", f"{where or 'body'}: this field is required", where)
    if where is None and worst["type"] in ("model_attributes_type", "model_type", "dict_type"):
        return ServeError("invalid", NOT_JSON)  # curl's default is another type
    said = "; or: ".join(dict.fromkeys(one["msg"] for field, one in inside if field == parts))
    given = reprlib.repr(worst["input"])
    return ServeError("invalid_field", f"{where or 'body'}: {said}. Given: {given}", where)


def _field(error: Mapping[str, Any], body: object) -> list[str | int]:
    """The path of a field, e.g. messages, 0, content; the whole body has none."""
    parts = [part for part in error["loc"] if part not in ("body", "query")]
    if body is not None:
        missing = parts[-1:] if error["type"] == "missing" else []
        parts = [*_inside(body, parts), *missing]
    return parts


def _inside(value: Any, parts: Sequence[Any]) -> Iterator[Any]:
    """The parts of a place that lead through a value; the others are names of types."""
    for part in parts:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError):
            continue
        yield part


def _position(place: Sequence[Any]) -> str:
    """Where reading stopped."""
    return f", at character {place[-1]}" if place and isinstance(place[-1], int) else ""
