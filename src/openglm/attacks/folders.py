"""Attacks through folders that an operator takes over: models to import, and runs to go on with.

Like those through checkpoints, they are tried on the openglm that runs this.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from openglm.attacks.artefacts import Touch
from openglm.attacks.target import Target
from openglm.errors import DownloadError, OpenGLMError
from openglm.hub.local import LocalFolder
from openglm.train.checkpoint import restore, save

NAME = "config.json"
STATES = ("model.safetensors", "optimizer.safetensors", "state.json")
BESIDE = ("rng_state.pth", "optimizer.pt", "scheduler.pt", "training_args.bin")
"""Where other trainers keep pickles."""


def folders_that_lead_out(target: Target) -> Iterator[str]:
    """F4: what is no file of the folder is not copied from it."""
    for what, make in _ways_out().items():
        with tempfile.TemporaryDirectory() as name:
            folder, neighbour = Path(name) / "safe", Path(name) / "safe_evil"
            for place in (folder, neighbour):
                place.mkdir()
            (neighbour / NAME).write_text("a secret")
            make(folder / NAME, neighbour / NAME)
            source = LocalFolder(folder, (), lambda count: None)
            for file in source.list_files():
                try:
                    source.check(file)
                except DownloadError:
                    continue
                except Exception as error:
                    yield f"{what}: {type(error).__name__}: {error}"[:200]
                else:
                    yield f"{what}: {file.path} would be copied"


def runs_with_programs(target: Target) -> Iterator[str]:
    """M7: a run goes on from tensors and JSON; pickles among them are refused, or left alone."""
    for name in (*STATES, *BESIDE):
        with tempfile.TemporaryDirectory() as place:
            network = nn.Linear(1, 1)
            optimizer = torch.optim.AdamW(network.parameters())
            network(torch.ones(1, 1)).sum().backward()
            optimizer.step()
            folder = save(Path(place) / "checkpoints", network, optimizer, {"step": 1}, keep=1)
            mark = Path(place) / "mark"
            (folder / name).write_bytes(pickle.dumps(Touch(mark)))
            try:
                restore(folder, network, optimizer)
            except OpenGLMError:
                pass
            except Exception as error:
                yield f"a pickle as {name}: {type(error).__name__}: {error}"[:200]
            else:
                if name in STATES:
                    yield f"a pickle as {name}: it was taken"
            if mark.exists():
                yield f"a pickle as {name}: the program was run"


def _ways_out() -> dict[str, Callable[[Path, Path], None]]:
    """How a file of a folder can be another one, or none: (its path, the other's) -> None."""

    def relative(path: Path, other: Path) -> None:
        path.symlink_to(Path("..", other.parent.name, other.name))

    def in_two_steps(path: Path, other: Path) -> None:
        (path.parent / "step").symlink_to(other.parent)
        path.symlink_to(Path("step", other.name))

    return {
        "a link to another folder": lambda path, other: path.symlink_to(other),
        "a relative link to a folder that begins alike": relative,
        "a link through a link": in_two_steps,
        "a link to a file of the system": lambda path, other: path.symlink_to("/etc/passwd"),
        "a link to itself": lambda path, other: path.symlink_to(path.name),
        "a pipe": lambda path, other: os.mkfifo(path),
    }
