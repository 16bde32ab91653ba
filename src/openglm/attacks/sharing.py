"""Attacks on what users share without knowing: the cache of prompts."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from openglm.attacks.attack import unharmed
from openglm.attacks.target import Answer, NotApplicable, Target

WORDS = 100
"""Of the prompt: enough for some pages of a cache, and for the context of a small model."""


def cached_prompts(target: Target) -> Iterator[str]:
    """R12: usage tells what was in the cache; so does time, but not as surely."""
    if target.other_key is None:
        raise NotApplicable("needs a second key")
    path = next(iter(target.calls))
    secret = uuid.uuid4().hex + " and so on" * (WORDS // 3)
    fields: dict[str, Any] = (
        {"messages": [{"role": "user", "content": secret}]}
        if path.endswith("chat/completions")
        else {"prompt" if path == "/v1/completions" else "text": secret}
    )
    own = [target.ask(path, **fields) for _ in range(2)]
    body = {**target.calls[path], **fields}
    others = target.send("POST", path, key=target.other_key, json=body)
    for found in (*own, others):
        yield from unharmed("a call", found)
    if not _cached(own[1]):
        raise NotApplicable("this model keeps no prompts, or does not say so")
    if _cached(others):
        yield f"{_cached(others)} tokens of another user's prompt are in the cache"


def _cached(found: Answer) -> int:
    """Tokens of a prompt that were in the cache."""
    used = (found.json() or {}).get("usage") or {}
    return int((used.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
