"""What a MODEL of `glm download` means."""

from __future__ import annotations

from dataclasses import dataclass

from openglm.errors import ConfigError, DownloadError, UsageError, suggest
from openglm.home import EMBEDDED, folder_name
from openglm.registry import Published, find_checkpoint, find_preset, is_repository, presets

HUGGINGFACE, MODELSCOPE = "huggingface", "modelscope"
HUBS = {HUGGINGFACE: "Hugging Face", MODELSCOPE: "ModelScope"}


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to have.

    Args:
        name: of its folder in the user folder.
        title: for people.
        licence: as we know it; "" for a repository that is no preset.
        hub: key of the hub; "" if no hub has it.
        repository: on that hub.
        revision: commit, branch or tag on that hub; None for the newest.
        by_hand: how to get it without a hub.
    """

    name: str
    title: str
    licence: str = ""
    hub: str = ""
    repository: str = ""
    revision: str | None = None
    by_hand: str = ""


def find_target(name: str, hub: str | None = None) -> Target:
    """The checkpoint that a user means.

    Args:
        name: of a preset, or a repository `organisation/name`.
        hub: where to look; None for where it is, Hugging Face first.

    Raises:
        UsageError: unknown hub, or the model that is built in.
        ConfigError: a name that is neither, or not safe as one.
        DownloadError: the hub does not have this preset.
    """
    if hub is not None and hub not in HUBS:
        raise UsageError(f"unknown hub {hub!r}", hint=suggest(hub, HUBS))
    if name == EMBEDDED:
        raise UsageError(f"{EMBEDDED} is built in", hint="there is nothing to download")
    key = find_checkpoint(name)
    if key is not None:
        return _of_preset(key, name, hub)
    if not is_repository(name):
        raise ConfigError(
            f"{name!r} is neither a known model nor a repository, organisation/name",
            hint=suggest(name, presets()),
        )
    related = find_preset(name)
    licence = presets()[related].licence if related is not None else ""
    return Target(folder_name(name), name, licence, hub or HUGGINGFACE, name)


def _of_preset(key: str, name: str, hub: str | None) -> Target:
    preset = presets()[key]
    published = preset.hub
    names = {HUGGINGFACE: published.huggingface, MODELSCOPE: published.modelscope}
    if hub is None:
        is_modelscope = name.lower() == (published.modelscope or "").lower()
        hub = MODELSCOPE if is_modelscope else HUGGINGFACE if published.huggingface else ""
    repository = names.get(hub) or ""
    if hub and not repository:
        raise DownloadError(f"{HUBS[hub]} does not have {key}", hint=_elsewhere(key, published))
    return Target(
        name=key,
        title=preset.title,
        licence=preset.licence,
        hub=hub,
        repository=repository,
        revision=published.revision if hub == HUGGINGFACE else None,
        by_hand=published.by_hand,
    )


def _elsewhere(key: str, published: Published) -> str:
    if published.huggingface:
        return f"Hugging Face does: glm download {key}"
    return published.by_hand
