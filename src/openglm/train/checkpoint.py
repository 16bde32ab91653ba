"""Training checkpoints: safetensors and JSON, written atomically, the latest few kept.

    RUN/checkpoints/step-00000500/
        model.safetensors        float32 master weights of what is trained
        optimizer.safetensors    AdamW moments and step counts, named by parameter
        state.json               step, tokens seen

A folder gets its name only when it is complete and on disk, so `kill -9` at any moment leaves the
previous checkpoint or the new one, never a torn one. Data order and dropout are functions of
(seed, step) and need no saved state.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from openglm.errors import CheckpointError
from openglm.train.task import trained

_STEP = re.compile(r"step-(\d{8})")


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, int],
    keep: int,
) -> Path:
    """Writes the checkpoint of `state["step"]` under `folder` and removes all but `keep`."""
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step-{state['step']:08d}"
    for abandoned in folder.glob(".building-*"):  # by a run that was killed while saving
        shutil.rmtree(abandoned)
    building = folder / f".building-{os.getpid()}"
    building.mkdir()
    save_file({name: p.data for name, p in trained(model).items()}, building / "model.safetensors")
    save_file(_moments(model, optimizer), building / "optimizer.safetensors")
    (building / "state.json").write_text(json.dumps(state))
    for path in building.iterdir():
        _sync(path)
    _sync(building)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(building, final)
    _sync(folder)
    for _, old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """All complete checkpoints as (step, path), oldest first."""
    if not folder.is_dir():
        return []
    found = [(_STEP.fullmatch(path.name), path) for path in folder.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in found if match)


def restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Loads a checkpoint into `model` and `optimizer`; returns its state.

    Raises:
        CheckpointError: a file is missing or damaged, or the weights are of another model.
    """
    try:
        weights = load_file(path / "model.safetensors")
        moments = load_file(path / "optimizer.safetensors")
        state = _read_state(path / "state.json")
        _set_weights(model, weights)
        _set_moments(model, optimizer, moments)
    except (OSError, SafetensorError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(
            f"the training checkpoint {path} cannot be resumed: {error}",
            hint="remove this folder to fall back to the one before it",
        ) from error
    return state


def _read_state(path: Path) -> dict[str, int]:
    """Names and whole numbers; `ValueError` for anything else, texts that are none included."""
    state = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(state, dict) or not all(type(value) is int for value in state.values()):
        raise ValueError(f"{path.name} is no table of whole numbers")
    return state


@torch.no_grad()
def _set_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Every trained parameter, from exactly one tensor of its shape; else `ValueError`."""
    wanted = trained(model)
    if differing := sorted(wanted.keys() ^ weights.keys()):
        raise ValueError(f"its tensors are not those that are trained: {', '.join(differing[:5])}")
    for name, parameter in wanted.items():
        if parameter.shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, not {tuple(parameter.shape)}"
            raise ValueError(f"{name} has the shape {shapes}")
        parameter.copy_(weights[name])


def _moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}/{key}": value
        for name, parameter in trained(model).items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _set_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    for name, parameter in trained(model).items():
        optimizer.state[parameter] = {
            key: moments[f"{name}/{key}"].to(parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
