"""Loading a checkpoint: every tensor is used exactly once, or the load fails with three lists."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from openglm.checkpoints.files import FLOAT_DTYPES, PickleFile, WeightFile, open_weights
from openglm.checkpoints.layouts import FORMAT_VERSION, CheckpointFiles, detect
from openglm.checkpoints.maps import NameMap, Row
from openglm.checkpoints.maps import glm as glm_map
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, ConfigError, suggest
from openglm.log import logger
from openglm.model import Transformer, build

LISTED = 8
"""Names shown of a longer list."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights.

    Args:
        model: in eval mode.
        config: its architecture.
        folder: where it came from.
        layout: of the folder: openglm, hf or megatron.
        stored_dtype: of the weights in the files.
        metadata: the `about` table of an openglm folder, {} for others.
    """

    model: Transformer
    config: ModelConfig
    folder: Path
    layout: str
    stored_dtype: torch.dtype
    metadata: dict[str, Any]


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Makes every error name the checkpoint and say what to do."""
    try:
        yield
    except (CheckpointError, ConfigError) as error:
        named = str(folder) in error.message
        message = error.message if named else f"{folder}: {error.message}"
        hint = error.hint or "is this the whole checkpoint, as published? download it again"
        raise CheckpointError(message, hint) from error


def load_checkpoint(
    folder: Path,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    description: dict[str, Any] | None = None,
) -> Loaded:
    """Loads any checkpoint folder known to `openglm.checkpoints.layouts`.

    Memory: the final weights plus one tensor; files are memory-mapped.

    Args:
        folder: the checkpoint.
        dtype: of the parameters; None = as stored.
        device: where they go.
        description: what a Megatron folder does not say, like {"num_attention_heads": 64}; used
            where there is no description beside it.

    Raises:
        CheckpointError: see `open_weights`, `detect`; or tensors are missing, unexpected, of a
            wrong shape or of a dtype that weights cannot have.
    """
    with _naming(folder):
        files = detect(folder)
        if not files.config and description:
            files = dataclasses.replace(files, config=description)
        return _load(folder, files, dtype, device)


def _load(
    folder: Path, files: CheckpointFiles, dtype: torch.dtype | None, device: torch.device | str
) -> Loaded:
    ranks = _open(files)
    shapes = [_joined_shapes(shards) for shards in ranks]
    config = _config(files, shapes[0], len(ranks))
    model = build(config)
    names = (
        NameMap(tuple(Row(n, (n,)) for n in model.state_dict()))
        if files.layout == "openglm"
        else glm_map.name_map(config)
    )
    rows = names.expand(config.num_layers)
    _check(folder, model, rows, shapes)
    stored = _check_dtypes(ranks)
    for row, tensors in _tensors(rows, ranks):
        _warn_if_copies_differ(row, tensors)
        for name, tensor in zip(row.targets, row.read(tensors), strict=True):
            _assign(model, name, tensor.to(device=device, dtype=dtype or stored))
    return Loaded(model.eval(), config, folder, files.layout, stored, files.config.get("about", {}))


def describe_checkpoint(folder: Path) -> tuple[ModelConfig, str, dict[str, Any]]:
    """Architecture, layout and `about` table of a folder; weights are opened, not read."""
    with _naming(folder):
        files = detect(folder)
        ranks = _open(files)
        config = _config(files, _joined_shapes(ranks[0]), len(ranks))
        return config, files.layout, files.config.get("about", {})


def _open(files: CheckpointFiles) -> list[list[WeightFile]]:
    """Weight files by rank; Hugging Face prefixes are taken off."""
    if files.layout == "megatron":
        ranks = [open_weights(path, key="module") for path in files.ranks]
        _check_num_ranks(files, ranks)
        return [[file] for file in ranks]
    shards = [open_weights(path) for path in files.shards]
    if files.index is not None:
        for file in shards:
            claimed = {n for n, shard in files.index.items() if shard == file.path.name}
            absent = claimed - set(file.shapes())
            if absent:
                raise CheckpointError(
                    f"the index of {files.folder} is stale: {file.path.name} lacks "
                    f"{_shorten(sorted(absent))}",
                    hint="index and shards are of different versions; download both again",
                )
    if files.layout == "hf" and all(
        n.startswith(glm_map.PREFIX) for s in shards for n in s.shapes()
    ):
        return [[_Unprefixed(file, glm_map.PREFIX) for file in shards]]
    return [shards]


class _Unprefixed:
    """A weight file seen without a common prefix of its names."""

    def __init__(self, file: WeightFile, prefix: str) -> None:
        self.file, self.prefix, self.path = file, prefix, file.path

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {n.removeprefix(self.prefix): s for n, s in self.file.shapes().items()}

    def dtypes(self) -> dict[str, torch.dtype | str]:
        return {n.removeprefix(self.prefix): d for n, d in self.file.dtypes().items()}

    def get(self, name: str) -> Tensor:
        return self.file.get(self.prefix + name)


def _check_num_ranks(files: CheckpointFiles, ranks: list[WeightFile]) -> None:
    first = ranks[0]
    declared = first.content.get("mp_world_size") if isinstance(first, PickleFile) else None
    if isinstance(declared, int) and declared != len(ranks):
        raise CheckpointError(
            f"{files.folder} was saved by {declared} tensor-parallel ranks, "
            f"but has {len(ranks)} mp_rank files",
            hint="all mp_rank files are needed",
        )


def _joined_shapes(shards: list[WeightFile]) -> dict[str, tuple[int, ...]]:
    counts = Counter(name for shard in shards for name in shard.shapes())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise CheckpointError(f"these tensors are in several shards: {_shorten(twice)}")
    return {name: shape for shard in shards for name, shape in shard.shapes().items()}


def _config(
    files: CheckpointFiles, shapes: dict[str, tuple[int, ...]], num_ranks: int
) -> ModelConfig:
    if files.layout == "openglm":
        version = files.config.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"config.json has format_version={version!r}; this openglm reads {FORMAT_VERSION}",
                hint="install a newer openglm",
            )
        return ModelConfig.from_dict(files.config.get("model", {}))
    if files.layout == "hf":
        return glm_map.config_from_hf(files.config)
    return glm_map.config_from_shapes(shapes, num_ranks, files.config)


def _check(
    folder: Path,
    model: Transformer,
    rows: dict[str, Row],
    shapes: list[dict[str, tuple[int, ...]]],
) -> None:
    """Compares names and shapes of all ranks with the network; raises with three lists."""
    missing: list[str] = []
    unexpected: list[str] = []
    wrong: list[str] = []
    wanted = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for rank, present in enumerate(shapes):
        suffix = f" (rank {rank})" if len(shapes) > 1 else ""
        missing += [name + suffix for name in rows if name not in present]
        unexpected += [name + suffix for name in present if name not in rows]
        for name, row in rows.items():
            if name in present:
                expected = _foreign_shape(row, wanted, len(shapes))
                if present[name] != expected:
                    wrong.append(f"{name}{suffix} is {present[name]}, not {expected}")
    if not (missing or unexpected or wrong):
        return
    lists = [
        f"{title} ({len(names)}): {_shorten(names)}"
        for title, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong),
        )
        if names
    ]
    hint = (
        suggest(unexpected[0], missing)
        if unexpected and missing
        else ("the configuration and the weights are of different models" if wrong else "")
    )
    raise CheckpointError(f"{folder} does not fit its configuration: " + "; ".join(lists), hint)


def _foreign_shape(row: Row, wanted: dict[str, tuple[int, ...]], num_ranks: int) -> tuple[int, ...]:
    shape = list(wanted[row.targets[0]])
    shape[0] *= len(row.targets)
    if row.split is not None:
        shape[row.split] //= num_ranks
    return tuple(shape)


def _check_dtypes(ranks: list[list[WeightFile]]) -> torch.dtype:
    """The dtype of the weights; integers, doubles and the like are refused."""
    found: Counter[torch.dtype] = Counter()
    for shards in ranks:
        for shard in shards:
            for name, dtype in shard.dtypes().items():
                if not isinstance(dtype, torch.dtype):
                    allowed = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
                    raise CheckpointError(
                        f"{shard.path}: {name} has dtype {dtype}; weights must be one of {allowed}"
                    )
                found[dtype] += 1
    return found.most_common(1)[0][0]


def _tensors(
    rows: dict[str, Row], ranks: list[list[WeightFile]]
) -> Iterator[tuple[Row, list[Tensor]]]:
    holders = [{name: shard for shard in shards for name in shard.shapes()} for shards in ranks]
    for name, row in rows.items():
        yield row, [holder[name].get(name) for holder in holders]


def _warn_if_copies_differ(row: Row, tensors: list[Tensor]) -> None:
    if row.split is None and any(not torch.equal(tensors[0], other) for other in tensors[1:]):
        logger.warning(
            "%s differs between tensor-parallel ranks; rank 0 is used, as officially", row.source
        )


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
