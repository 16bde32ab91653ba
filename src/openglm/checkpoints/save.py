"""Writing checkpoints: openglm, hf, megatron and sat folders, each exactly invertible."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from openglm.checkpoints.layouts import FORMAT_VERSION, TRACKERS
from openglm.checkpoints.maps import FAMILIES, Family
from openglm.checkpoints.maps.table import SCALE
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, UsageError, suggest
from openglm.model import build
from openglm.quant.linear import rowwise
from openglm.tokenizers import Tokenizer

SHARD_BYTES = 4 << 30
MEGATRON_TAG = "release"


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    layout: str,
    *,
    tokenizer: Tokenizer | None = None,
    num_ranks: int = 1,
    about: dict[str, Any] | None = None,
    token_ids: dict[str, int] | None = None,
) -> None:
    """Writes `weights` (our names) as a checkpoint folder, atomically.

    Args:
        folder: must not exist yet.
        config: the architecture.
        weights: every parameter of the network by our name.
        layout: openglm, hf, megatron or sat.
        tokenizer: its files go along.
        num_ranks: tensor-parallel degree, megatron and sat only.
        about: free metadata kept in an openglm folder.
        token_ids: ids of command tokens by role, for descriptions that hold them.

    Raises:
        UsageError: unknown layout, or a degree that does not divide the network.
        CheckpointError: the folder exists, or the layout cannot express the network.
    """
    if layout not in WRITERS:
        raise UsageError(f"unknown checkpoint layout {layout!r}", hint=suggest(layout, WRITERS))
    if folder.exists():
        raise CheckpointError(f"{folder} exists already", hint="name a new folder")
    _check_degree(config, layout, num_ranks)
    bits = stored_bits(config, weights)
    if bits and layout in RANK_LAYOUTS:
        raise UsageError(
            "quantized weights cannot be written as rank files", hint="write them as hf or openglm"
        )
    missing = sorted(set(rowwise(build(config), bits).state_dict()) ^ set(weights))
    if missing:
        raise CheckpointError(f"these weights are missing or unknown: {', '.join(missing[:8])}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        WRITERS[layout](building, config, weights, num_ranks, about or {}, token_ids or {})
        if tokenizer is not None:
            for name, path in tokenizer.files().items():
                shutil.copyfile(path, building / name)
            _write_json(building / "tokenizer_config.json", _tokenizer_config(tokenizer, layout))
        _make_readable(building)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_openglm(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    num_ranks: int,
    about: dict[str, Any],
    token_ids: dict[str, int],
) -> None:
    description = {
        "format": "openglm",
        "format_version": FORMAT_VERSION,
        "model": config.to_dict(),
        "about": about,
        **({"token_ids": token_ids} if token_ids else {}),
        **_quantization(config, weights),
    }
    _write_json(folder / "config.json", description)
    _write_shards(folder, iter(weights.items()))


def _write_hf(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    num_ranks: int,
    about: dict[str, Any],
    token_ids: dict[str, int],
) -> None:
    dtype = next(iter(weights.values())).dtype
    family = _family(config, "hf", stored_bits(config, weights))
    values = {"torch_dtype": str(dtype).removeprefix("torch.")} | family.to_json(config)
    values |= family.token_json(token_ids) | _quantization(config, weights)
    _write_json(folder / "config.json", values)
    _write_shards(folder, _foreign(family, config, weights, 0, 1))


def _write_ranks(
    folder: Path,
    config: ModelConfig,
    weights: dict[str, Tensor],
    num_ranks: int,
    about: dict[str, Any],
    token_ids: dict[str, int],
    layout: str,
) -> None:
    family = _family(config, layout)
    # The description makes the head count and the GELU variant part of the checkpoint.
    description = family.to_json(config) | family.token_json(token_ids)
    _write_json(folder / family.description_file, description)
    for tracker in TRACKERS:
        (folder / tracker).write_text(MEGATRON_TAG, encoding="utf-8")
    (folder / MEGATRON_TAG).mkdir()
    for rank in range(num_ranks):
        content = {
            "module": family.nest(dict(_foreign(family, config, weights, rank, num_ranks))),
            "mp_world_size": num_ranks,
            "iteration": 0,
        }
        torch.save(content, folder / MEGATRON_TAG / f"mp_rank_{rank:02d}_model_states.pt")


WRITERS: dict[str, Callable[..., None]] = {
    "openglm": _write_openglm,
    "hf": _write_hf,
    "megatron": partial(_write_ranks, layout="megatron"),
    "sat": partial(_write_ranks, layout="sat"),
}
RANK_LAYOUTS = ("megatron", "sat")


def stored_bits(config: ModelConfig, weights: dict[str, Tensor]) -> int:
    """8 or 4 for official row-wise quantized weights, 0 for others."""
    name = "layers.0.attention.q_proj.weight"
    if name + SCALE not in weights:
        return 0
    return 8 if weights[name].shape[1] == config.hidden_size else 4


def _quantization(config: ModelConfig, weights: dict[str, Tensor]) -> dict[str, Any]:
    bits = stored_bits(config, weights)
    return {"quantization_bit": bits} if bits else {}


def _family(config: ModelConfig, layout: str, bits: int = 0) -> Family:
    """The official files that can hold a network, so that reading them gives it back."""
    for family in FAMILIES:
        if not family.fits(config) or (bits and not family.has_quantized_files):
            continue
        if layout == "hf":
            back = family.from_json and family.from_json(family.to_json(config))
            found = back == config
        else:
            found = layout in family.rank_layouts
        if found:
            return family
    raise CheckpointError(
        f"no official {layout} files can hold this network", hint="write it as openglm"
    )


def _foreign(
    family: Family, config: ModelConfig, weights: dict[str, Tensor], rank: int, num_ranks: int
) -> Iterator[tuple[str, Tensor]]:
    names = family.name_map(config).with_scales(weights)
    for name, row in names.expand(config.num_layers).items():
        if not row.targets:
            continue
        tensor = row.write([weights[target] for target in row.targets], rank, num_ranks)
        yield name, tensor.clone()  # cuts are views; a saved view would carry its whole storage


def _write_shards(folder: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
    """Writes `model.safetensors`, or numbered shards of at most `SHARD_BYTES` with an index."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    size = 0

    def flush() -> None:
        save_file(pending, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(pending))
        pending.clear()

    for name, tensor in tensors:
        if pending and size + tensor.nbytes > SHARD_BYTES:
            flush()
            size = 0
        pending[name] = tensor.contiguous()
        size += tensor.nbytes
    flush()
    if len(shards) == 1:
        os.rename(folder / "shard-0", folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards):
        file = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        os.rename(folder / f"shard-{number}", folder / file)
        weight_map |= dict.fromkeys(names, file)
    _write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})


def _make_readable(folder: Path) -> None:
    """Gives files the user's usual permissions; mkdtemp and safetensors make private ones."""
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        os.chmod(path, (0o777 if path.is_dir() else 0o666) & ~umask)


def _check_degree(config: ModelConfig, layout: str, num_ranks: int) -> None:
    if num_ranks < 1 or (num_ranks > 1 and layout not in RANK_LAYOUTS):
        raise UsageError(
            f"{num_ranks} tensor-parallel ranks cannot be written as {layout}",
            hint="only megatron and sat folders are split; the others hold the whole model",
        )
    cut = ["num_attention_heads", "vocab_size", "intermediate_size"]
    for name in [*cut, "max_position_embeddings"] if config.top_query else cut:
        if getattr(config, name) % num_ranks:
            raise UsageError(
                f"{name}={getattr(config, name)} cannot be split over {num_ranks} ranks"
            )


def _tokenizer_config(tokenizer: Tokenizer, layout: str) -> dict[str, str]:
    from openglm.tokenizers.load import OFFICIAL_CLASSES

    official = [name for name, kind in OFFICIAL_CLASSES.items() if kind == tokenizer.kind]
    if layout == "hf" and official:
        return {"tokenizer_class": official[0]}
    return {"kind": tokenizer.kind}


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
