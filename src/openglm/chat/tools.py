"""Tool calls, read without running them.

ChatGLM3 writes `tool_call(symbol='10111', days=3)`, which the official demos evaluate as Python;
here only literals are read. GLM-4 writes the arguments as JSON.
"""

from __future__ import annotations

import ast
import json
import math
from typing import Any

from openglm.errors import RequestError

MAX_LENGTH = 1 << 16
MAX_DEPTH = 32
MAX_INTEGER = 1 << 63
FUNCTION = "tool_call"


def parse_tool_call(text: str) -> dict[str, Any]:
    """Keyword arguments of the one call in `text`.

    Args:
        text: source of one call of `tool_call` with literal keyword arguments: text, numbers,
            true/false, none, lists, tuples and dictionaries.

    Raises:
        RequestError: anything else, or longer or deeper than any sane call.
    """
    if len(text) > MAX_LENGTH:
        raise RequestError(f"the tool call has {len(text)} characters; at most {MAX_LENGTH}")
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise RequestError(f"the tool call cannot be read: {text[:80]!r}") from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise RequestError(f"this is not a call of {FUNCTION}: {text[:80]!r}")
    if call.func.id != FUNCTION or call.args:
        raise RequestError(f"only {FUNCTION}(name=value, ...) is a tool call, not {text[:80]!r}")
    arguments: dict[str, Any] = {}
    for keyword in call.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise RequestError("a tool call has named arguments only, each once")
        arguments[keyword.arg] = _literal(keyword.value, MAX_DEPTH)
    return arguments


def parse_json_call(text: str) -> dict[str, Any]:
    """Arguments that GLM-4 wrote: one JSON object of finite numbers.

    Raises:
        RequestError: anything else, or longer than any sane call.
    """
    if len(text) > MAX_LENGTH:
        raise RequestError(f"the tool call has {len(text)} characters; at most {MAX_LENGTH}")
    try:
        arguments = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the tool call is not JSON: {text[:80]!r}") from error
    if not isinstance(arguments, dict):
        raise RequestError(f"the arguments of the tool call are no JSON object: {text[:80]!r}")
    return arguments


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _is_json(value: object) -> bool:
    """Whether a constant can be passed on: text, a truth value, none, or a number of sane size."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < MAX_INTEGER
    return value is None or isinstance(value, str)


def _literal(node: ast.expr, depth: int) -> Any:
    if depth == 0:
        raise RequestError(f"the arguments of the tool call are nested deeper than {MAX_DEPTH}")
    if isinstance(node, ast.Constant) and _is_json(node.value):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        value = _literal(node.operand, depth - 1)
        if isinstance(value, int | float):
            return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item, depth - 1) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_literal(key, depth - 1) for key in node.keys if key is not None]
        if all(isinstance(key, str | int | float | None) for key in keys):
            values = [_literal(value, depth - 1) for value in node.values]
            return dict(zip(keys, values, strict=True))
    raise RequestError(
        f"the argument in line {node.lineno}, column {node.col_offset} of the tool call is no "
        "literal",
        hint="text, numbers, True, False, None, lists and dictionaries are",
    )
