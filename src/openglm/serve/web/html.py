"""HTML of our own."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape


def escaped(text: str) -> str:
    """A text in HTML; as one line, since Markdown takes an empty one for the end of the HTML."""
    return escape(text).replace("\n", "<br>").replace("\r", "")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts."""
    head = "".join(f"<th>{escaped(text)}</th>" for text in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{escaped(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"
