"""Presets: one TOML file per published checkpoint, looked up by name or alias. No torch."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from openglm.config import ModelConfig
from openglm.errors import ConfigError, suggest
from openglm.settings import parse

REPOSITORY = re.compile(r"(?=.{3,96}$)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
"""A name on a hub, `organisation/repository`."""
RENAMED = {"thudm": "zai-org"}
"""Organisations of Hugging Face that moved; the hub redirects the old names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """Where the files of a checkpoint are.

    Args:
        huggingface: repository on Hugging Face.
        modelscope: repository on ModelScope.
        revision: commit on Hugging Face, for a checkpoint that was replaced by a later one.
        by_hand: how to get it where no hub has it, or may not have it.
    """

    huggingface: str | None = None
    modelscope: str | None = None
    revision: str | None = None
    by_hand: str = ""

    @property
    def repositories(self) -> tuple[str, ...]:
        """Its names on the hubs."""
        return tuple(name for name in (self.huggingface, self.modelscope) if name)


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
        hub: where its files are.
        trained_tokens: length of the longest texts that it was trained on, where its positions go
            further; None = as far as they go.
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
    hub: Published
    trained_tokens: int | None = None
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


@cache
def trained_on(config: ModelConfig) -> tuple[str, int] | None:
    """Title and `trained_tokens` of a published model of this architecture that has any."""
    names = ("rotary_compute", "rotary_frequencies")  # may be chosen otherwise than released
    for known in presets().values():
        rotary = {name: getattr(known.model, name) for name in names}
        if known.trained_tokens and dataclasses.replace(config, **rotary) == known.model:
            return known.title, known.trained_tokens
    return None


def find_preset(name: str) -> str | None:
    """The key of the preset with this name or alias, in any case of letters, if there is one."""
    for key, value in presets().items():
        if name.lower() in (known.lower() for known in (key, *value.aliases)):
            return key
    return None


def find_checkpoint(name: str) -> str | None:
    """The key of the preset whose files the repository `name` holds, if there is one.

    An alias says "this architecture": `THUDM/chatglm3-6b-base` is one of chatglm3-6b and holds
    other weights. A copy under another organisation, `BAAI/glm-10b`, holds the same.
    """
    key = find_preset(name)
    if key is None or "/" not in name:
        return key
    published = presets()[key].hub.repositories
    own = {repository.split("/")[1].lower() for repository in published}
    return key if not own or name.split("/")[1].lower() in own else None


def is_repository(name: str) -> bool:
    """Whether this is a name on a hub; such a name is safe as a part of a path, too."""
    return bool(REPOSITORY.fullmatch(name)) and not (".." in name or "--" in name)


def preset(name: str) -> Preset:
    """The preset with this name or alias; `ConfigError` with near names otherwise."""
    key = find_preset(name)
    if key is None:
        aliases = [alias for value in presets().values() for alias in value.aliases]
        raise ConfigError(f"unknown model {name!r}", hint=suggest(name, presets(), aliases))
    return presets()[key]
