"""`ServeSettings`: how models are served."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from openglm.serve.files import FileSettings
from openglm.serve.guard import GuardSettings
from openglm.serve.limits import LimitSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeSettings:
    """How models are served.

    Args:
        aliases: further names of models -> names.
        engine: settings of the engines of models that come without; see `Engine`.
        limits: of keys that have none of their own, and of all together.
        files: where they are kept, and how many.
        guard: what requests must be like.
        legacy: POST / answers as the first servers of ChatGLM and CodeGeeX2 did.
        web_path: where the web page is; None is nowhere.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    limits: LimitSettings = field(default_factory=LimitSettings)
    files: FileSettings = field(default_factory=FileSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    legacy: bool = False
    web_path: str | None = None
