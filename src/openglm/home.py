"""Where models live: folders, the embedded `mini`, and the user folder. No torch."""

from __future__ import annotations

import os
from importlib.resources import files
from pathlib import Path

from openglm.errors import ConfigError, suggest
from openglm.registry import RENAMED, find_checkpoint, is_repository, presets

EMBEDDED = "mini"


def home() -> Path:
    """`~/.cache/openglm`, moved by `OPENGLM_HOME`; created with mode 0700."""
    folder = Path(os.environ.get("OPENGLM_HOME") or Path.home() / ".cache" / "openglm")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def models() -> Path:
    """The folder with a folder for each downloaded model."""
    return home() / "models"


def folder_name(repository: str) -> str:
    """The folder of a repository `organisation/name`, the same for both names of a renamed one."""
    organisation, name = repository.split("/")
    return f"{RENAMED.get(organisation.lower(), organisation)}--{name}"


def find_model(name: str) -> Path:
    """The checkpoint folder that `name` stands for.

    Args:
        name: `mini`, a folder, a .pt file, or a preset or hub name that was downloaded.

    Raises:
        ConfigError: there is none; the message tells a known name from an unknown one.
    """
    if name == EMBEDDED:
        folder = Path(str(files("openglm") / EMBEDDED))
        if not (folder / "config.json").is_file():
            raise ConfigError(
                "the weights of mini are not in this installation",
                hint="train them with recipes/mini, or name a checkpoint folder as MODEL",
            )
        return folder
    if name and (os.path.isdir(name) or (os.path.isfile(name) and name.endswith(".pt"))):
        return Path(name)
    if os.path.isfile(name):
        raise ConfigError(f"{name} is a file", hint=f"name its folder, {Path(name).parent}")
    key = find_checkpoint(name)
    places = [models() / folder_name(name)] if is_repository(name) else []
    places += [models() / key] if key is not None else []
    for folder in places:
        if folder.is_dir():
            return folder
    if key is not None:
        published = presets()[key].hub
        raise ConfigError(
            f"{name} is a known model, but its weights are not here",
            hint=f"glm download {key}" if published.repositories else published.by_hand,
        )
    if is_repository(name):
        raise ConfigError(f"{name} was not downloaded", hint=f"glm download {name}")
    raise ConfigError(
        f"{name!r} is neither a folder nor a known model",
        hint=suggest(name, [EMBEDDED, *presets()]),
    )
