"""English and Chinese texts of the command line, chosen by the locale."""

from __future__ import annotations

import os


def is_chinese() -> bool:
    """Whether the user's language is Chinese (LANGUAGE, LC_ALL, LC_MESSAGES, LANG)."""
    for variable in ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(variable)
        if value:
            return value.lower().startswith("zh")
    return False


def say(english: str, chinese: str) -> str:
    """The text in the user's language."""
    return chinese if is_chinese() else english
