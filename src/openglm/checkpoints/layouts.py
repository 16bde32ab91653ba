"""Recognising a checkpoint folder by its content, and finding its files.

openglm    config.json with "format": "openglm", model*.safetensors
hf         config.json, model*.safetensors or pytorch_model*.bin, with an index if sharded
megatron   latest or latest_checkpointed_iteration.txt -> TAG/mp_rank_XX_model_states.pt,
           or one .pt file; SwissArmyTransformer folders are such
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openglm.errors import CheckpointError

CONFIG = "config.json"
FORMAT_VERSION = 1
"""Of openglm folders."""
TRACKERS = ("latest_checkpointed_iteration.txt", "latest")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
SINGLES = ("model.safetensors", "pytorch_model.bin")
WHOLE = ".pt"
"""Ending of a file that holds a whole model (CodeGeeX), like one rank of a megatron folder."""
SIDECARS = (CONFIG, "model_config.json", "meta.json")
_TAG = re.compile(r"\w[\w.+-]*")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")


@dataclass(frozen=True, slots=True)
class CheckpointFiles:
    """A recognised checkpoint.

    Args:
        folder: what the user named.
        layout: openglm, hf or megatron.
        config: the JSON that describes the network; {} if there is none.
        shards: weight files that together hold every tensor once (openglm, hf).
        index: tensor name -> file name as the index file says, None without an index.
        ranks: one file per tensor-parallel rank (megatron).
    """

    folder: Path
    layout: str
    config: dict[str, Any]
    shards: list[Path]
    index: dict[str, str] | None
    ranks: list[Path]


def detect(folder: Path) -> CheckpointFiles:
    """Recognises `folder`; `CheckpointError` names what was looked for when it is none."""
    if folder.is_file():
        if folder.suffix != WHOLE:
            raise CheckpointError(f"{folder} is a file", hint=f"name its folder, {folder.parent}")
        sidecar = _sidecar(folder.parent, folder.parent)
        return CheckpointFiles(folder, "megatron", sidecar, [], None, [folder])
    if not folder.is_dir():
        raise CheckpointError(f"there is no folder {folder}")
    tag_folder = _megatron_tag(folder)
    if tag_folder is not None:
        ranks = _ranks(tag_folder)
        return CheckpointFiles(folder, "megatron", _sidecar(folder, tag_folder), [], None, ranks)
    shards, index = _shards(folder)
    whole = sorted(folder.glob("*" + WHOLE))
    if not shards and len(whole) == 1:
        return detect(whole[0])
    if not shards:
        held = sorted(path.name for path in folder.iterdir())
        names = [*SINGLES, *INDEXES, *TRACKERS, "mp_rank_00_model_states.pt"]
        raise CheckpointError(
            f"{folder} is no checkpoint known here: none of {', '.join(names)} is in it",
            hint=f"it holds: {', '.join(held[:12]) or 'nothing'}",
        )
    if not (folder / CONFIG).is_file():
        raise CheckpointError(f"{folder} has weights but no {CONFIG}")
    config = _read_json(folder / CONFIG)
    layout = "openglm" if config.get("format") == "openglm" else "hf"
    return CheckpointFiles(folder, layout, config, shards, index, [])


def _megatron_tag(folder: Path) -> Path | None:
    """The folder with the rank files: the tracked tag, or `folder` itself."""
    if any(_RANK.fullmatch(path.name) for path in folder.iterdir()):
        return folder
    for tracker in TRACKERS:
        if (folder / tracker).is_file():
            tag = (folder / tracker).read_text(encoding="utf-8", errors="replace").strip()
            tag_folder = folder / tag
            if not _TAG.fullmatch(tag):
                raise CheckpointError(f"{folder / tracker} holds {tag!r}, which is no folder name")
            if not tag_folder.is_dir():
                raise CheckpointError(
                    f"{folder / tracker} names the folder {tag!r}, which is missing",
                    hint="download the checkpoint again, with its subfolder",
                )
            return tag_folder
    return None


def _ranks(tag_folder: Path) -> list[Path]:
    found: dict[int, Path] = {}
    for path in tag_folder.iterdir():
        match = _RANK.fullmatch(path.name)
        if match:
            found[int(match.group(1))] = path
    if not found:
        raise CheckpointError(f"{tag_folder} has no mp_rank_XX_model_states.pt")
    missing = [rank for rank in range(max(found) + 1) if rank not in found]
    if missing:
        raise CheckpointError(
            f"{tag_folder} lacks the tensor-parallel ranks {', '.join(map(str, missing))}",
            hint="all mp_rank files are needed",
        )
    return [found[rank] for rank in sorted(found)]


def _sidecar(folder: Path, tag_folder: Path) -> dict[str, Any]:
    """A description beside a Megatron checkpoint, which itself does not say its head count."""
    for place in (tag_folder, folder, folder.parent):
        for name in SIDECARS:
            if (place / name).is_file():
                config = _read_json(place / name)
                if "num_attention_heads" in config:
                    return config
    return {}


def _shards(folder: Path) -> tuple[list[Path], dict[str, str] | None]:
    for name in SINGLES:
        if (folder / name).is_file():
            return [folder / name], None
    for name in INDEXES:
        if (folder / name).is_file():
            index = _read_json(folder / name).get("weight_map")
            if not isinstance(index, dict) or not index:
                raise CheckpointError(f"{folder / name} has no weight_map")
            files = sorted(set(map(str, index.values())))
            strange = [file for file in files if Path(file).name != file]
            if strange:
                raise CheckpointError(
                    f"{folder / name} names {strange[0]!r}, which is no file name"
                )
            missing = [file for file in files if not (folder / file).is_file()]
            if missing:
                raise CheckpointError(
                    f"{folder} lacks {len(missing)} of {len(files)} shards: {', '.join(missing)}",
                    hint="download the missing files",
                )
            return [folder / file for file in files], index
    return [], None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", hint="download it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content
