"""`run.json`: what a run was started with, and whether another start goes on with the same."""

from __future__ import annotations

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import openglm
from openglm.errors import ConfigError
from openglm.train.task import Settings

RECORD_FILE = "run.json"
FREE_TO_CHANGE = {
    "train.log_every",
    "train.checkpoint_every",
    "train.validate_every",
    "train.validation_batches",
    "train.keep_checkpoints",
    "train.initial",  # only the start reads it
    "data.folder",  # content counts, not places: see Corpus.fingerprints
    "tokenizer.path",
    "model.name",  # its weights count: see Finetuning.fingerprints
}
"""Settings that may differ on resume; any other change would be another run."""


def write_record(
    folder: Path, settings: Settings, device: torch.device, fingerprints: list[str]
) -> None:
    """Writes everything that a run depends on into its folder."""
    record = {
        "config": settings.to_dict(),
        "corpus": fingerprints,
        "openglm": openglm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _git_commit(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    building = (folder / RECORD_FILE).with_suffix(".building")
    building.write_text(json.dumps(record, indent=2), encoding="utf-8")
    building.replace(folder / RECORD_FILE)


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def check_same_run(folder: Path, settings: Settings, fingerprints: list[str]) -> None:
    """Refuses to resume with settings or text that would make it another run.

    Raises:
        ConfigError: it names the setting that differs.
    """
    record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text(encoding="utf-8"))
    hint = "resume with the same settings, or start in another folder with --run"
    if record["corpus"] != fingerprints:
        raise ConfigError(
            f"{folder} was started on other text, another tokenizer or other weights", hint
        )
    before = _flat(record["config"])
    now = _flat(json.loads(json.dumps(settings.to_dict())))
    for key, value in now.items():
        if key not in FREE_TO_CHANGE and before.get(key) != value:
            raise ConfigError(
                f"{folder} was started with {key} = {before.get(key)!r}, "
                f"the configuration says {value!r}",
                hint,
            )


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """Settings of all tables as TABLE.KEY."""
    found: dict[str, Any] = {}
    for table, values in config.items():
        if isinstance(values, dict):
            found |= {f"{table}.{key}": value for key, value in values.items()}
        else:
            found[table] = values
    return found
