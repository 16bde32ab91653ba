"""Typed settings from TOML: unknown keys are errors, dotted overrides, no mutation afterwards."""

from __future__ import annotations

import copy
import dataclasses
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from openglm.errors import ConfigError, suggest

T = TypeVar("T")


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; `ConfigError` if missing or malformed."""
    if not path.is_file():
        raise ConfigError(f"there is no configuration file {path}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def read_toml_with_base(path: Path, below: tuple[str, ...] = ()) -> dict[str, Any]:
    """Like `read_toml`, for a file that may only hold what differs from another.

    A top-level `extends = "other.toml"` is read first and then replaced key by key, lists whole.
    """
    values = read_toml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    if (
        not isinstance(base, str)
        or Path(base).name != base
        or path.name in below
        or base == path.name
    ):
        raise ConfigError(f"{path}: extends={base!r} must name another file in the same folder")
    return _merge(read_toml_with_base(path.parent / base, (*below, path.name)), values)


def _merge(base: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in values.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def override(values: dict[str, Any], assignments: dict[str, str]) -> dict[str, Any]:
    """A copy of `values` with dotted keys replaced, e.g. {"train.steps": "100"}.

    A value is read as TOML if it can be (numbers, booleans, lists), else taken as a string.
    """
    out: dict[str, Any] = copy.deepcopy(values)
    for dotted, text in assignments.items():
        *tables, key = dotted.split(".")
        table = out
        for name in tables:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise ConfigError(f"{dotted}: {name!r} is a value, not a table")
        try:
            table[key] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            table[key] = text
    return out


def parse(cls: type[T], values: Any, where: str = "") -> T:
    """Builds the dataclass `cls` from plain values, checking names and types on the way.

    Raises:
        ConfigError: unknown or missing key, or a value of the wrong type; it names the full key.
    """
    if not isinstance(values, dict):
        raise ConfigError(f"{where or 'the configuration'} must be a table, not {values!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    types_of = get_type_hints(cls)
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {prefix}{key}", hint=suggest(key, fields))
    for name, field in fields.items():
        has_default = (
            field.default is not dataclasses.MISSING
            or field.default_factory is not dataclasses.MISSING
        )
        if name not in values and not has_default:
            raise ConfigError(f"the key {prefix}{name} is missing")
    return cls(**{k: _convert(types_of[k], v, prefix + k) for k, v in values.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        options = [option for option in get_args(kind) if option is not type(None)]
        return None if value is None else _convert(options[0], value, where)
    if origin is Literal:
        if value not in get_args(kind):
            allowed = ", ".join(map(str, get_args(kind)))
            raise ConfigError(f"{where}={value!r} is not one of {allowed}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        (item,) = get_args(kind)
        return [_convert(item, entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if dataclasses.is_dataclass(kind):
        return parse(kind, value, where)  # type: ignore[arg-type]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{where}={value!r} must be of type {kind.__name__}")
    return value
