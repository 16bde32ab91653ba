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
    """The architecture of a preset, or of a folder (its weights are not read)."""
    import os

    from openglm.home import EMBEDDED, find_model
    from openglm.registry import preset

    if name != EMBEDDED and not os.path.isdir(name):
        found = preset(name)
        return found.model, origin_of(found)
    from openglm.checkpoints import describe_checkpoint

    config, layout, about = describe_checkpoint(find_model(name))
    own = MINI if name == EMBEDDED else {}
    return config, {"layout": layout, **own, **about}


def origin_of(preset: Any) -> dict[str, Any]:
    """What a preset says besides its architecture."""
    keys = ("title", "source", "licence", "tokenizer", "objective", "task_masks", "aliases")
    return {key: getattr(preset, key) for key in keys}
