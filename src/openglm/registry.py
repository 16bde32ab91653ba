"""Presets: one TOML file per published checkpoint, looked up by name or alias. No torch."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from openglm.config import ModelConfig
from openglm.errors import ConfigError, suggest
from openglm.settings import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A published checkpoint.

    Args:
        title: its name in the papers.
        source: where it is published.
        licence: of the weights.
        parameters: exact count; a test builds the network and compares.
        tokenizer: kind, a key of `openglm.tokenizers.special.LAYOUTS`.
        objective: pretraining objectives.
        model: the architecture.
        task_masks: trained with `[sMASK]` and `[gMASK]` besides `[MASK]`.
        aliases: other names, hub names among them.
    """

    title: str
    source: str
    licence: str
    parameters: int
    tokenizer: str
    objective: str
    model: ModelConfig
    task_masks: bool = True
    aliases: list[str] = field(default_factory=list)


@cache
def presets() -> dict[str, Preset]:
    """All presets by name, smallest first."""
    found: dict[str, Preset] = {}
    for path in (files("openglm") / "presets").iterdir():
        if path.name.endswith(".toml"):
            values: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
            found[path.name.removesuffix(".toml")] = parse(Preset, values, path.name)
    return dict(sorted(found.items(), key=lambda item: (item[1].parameters, item[0])))


def find_preset(name: str) -> str | None:
    """The key of the preset with this name or alias, in any case of letters, if there is one."""
    for key, value in presets().items():
        if name.lower() in (known.lower() for known in (key, *value.aliases)):
            return key
    return None


def preset(name: str) -> Preset:
    """The preset with this name or alias; `ConfigError` with near names otherwise."""
    key = find_preset(name)
    if key is None:
        aliases = [alias for value in presets().values() for alias in value.aliases]
        raise ConfigError(f"unknown model {name!r}", hint=suggest(name, presets(), aliases))
    return presets()[key]
