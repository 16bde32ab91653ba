"""What MODEL names, for verbs that need its architecture and no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openglm.config import ModelConfig

MINI = {
    "title": "mini",
    "source": "trained by this project, recipes/mini; docs/models/mini.md",
    "licence": "CC BY-SA 4.0",
    "tokenizer": "mini",
    "objective": "token + sentence + document",
}
"""What presets say of the others, of the built-in model."""


def find_architecture(name: str) -> tuple[ModelConfig, dict[str, Any]]:
    """The architecture of a folder, a downloaded model (weights are not read), or a preset."""
    from openglm.errors import ConfigError
    from openglm.home import EMBEDDED, find_model
    from openglm.registry import find_preset, preset

    key = find_preset(name)
    origin = {} if key is None else origin_of(preset(key))
    try:
        folder = find_model(name)
    except ConfigError:
        if key is None:
            raise
        return preset(key).model, origin
    from openglm.checkpoints import describe_checkpoint

    config, layout, about, scheme = describe_checkpoint(folder)
    own = MINI if name == EMBEDDED else origin
    stored = {"quantization": scheme.name} if scheme else {}
    return config, {"layout": layout, **stored, **own, **about}


def origin_of(preset: Any) -> dict[str, Any]:
    """What a preset says besides its architecture."""
    keys = ("title", "source", "licence", "tokenizer", "objective", "task_masks", "aliases")
    longest = {"trained_tokens": preset.trained_tokens} if preset.trained_tokens else {}
    return {key: getattr(preset, key) for key in keys} | longest
