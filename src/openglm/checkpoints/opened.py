"""Opening the weight files of a checkpoint: which family they are of, seen under its names."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from openglm.checkpoints.files import PickleFile, WeightFile, open_weights
from openglm.checkpoints.layouts import CheckpointFiles
from openglm.checkpoints.maps import FAMILIES, Family
from openglm.errors import CheckpointError, shorten

Shapes = dict[str, tuple[int, ...]]


def open_files(files: CheckpointFiles) -> tuple[Family | None, list[list[WeightFile]]]:
    """The family (None: openglm's own), and the weight files by rank under canonical names.

    Raises:
        CheckpointError: see `open_weights`; or no known family, or not all ranks or tensors.
    """
    if files.layout == "megatron":
        ranks = [open_weights(path, key="module") for path in files.ranks]
        _check_num_ranks(files, ranks)
        family = _family_by_names(files, set(ranks[0].shapes()))
        return family, [[_Renamed(file, family)] for file in ranks]
    shards = [open_weights(path) for path in files.shards]
    _check_index(files, shards)
    if files.layout == "openglm":
        return None, [shards]
    family = _family_by_config(files)
    return family, [[_Renamed(file, family) for file in shards]]


def _family_by_names(files: CheckpointFiles, names: set[str]) -> Family:
    for family in FAMILIES:
        if family.marker in {family.canonical(name) for name in names}:
            return family
    known = ", ".join(f"{f.marker} ({f.name})" for f in FAMILIES if f.marker)
    raise CheckpointError(
        f"{files.ranks[0]} holds no model known here, which would have one of {known}; it has "
        f"{len(names)} tensors: {shorten(sorted(names))}"
    )


def _family_by_config(files: CheckpointFiles) -> Family:
    is_name = isinstance(files.config.get("model_type", ""), str)
    for family in FAMILIES if is_name else ():
        if family.recognises is not None and family.recognises(files.config):
            return family
    raise CheckpointError(
        f"config.json has model_type={files.config.get('model_type')!r}, which is no model known "
        "here",
        hint="known model types: glm, chatglm, glm4; CodeGeeX and GLM-130B by their weights",
    )


def joined_shapes(shards: list[WeightFile]) -> Shapes:
    """Name -> shape over all shards of one rank."""
    counts = Counter(name for shard in shards for name in shard.shapes())
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise CheckpointError(f"these tensors are in several shards: {shorten(twice)}")
    return {name: shape for shard in shards for name, shape in shard.shapes().items()}


def _check_index(files: CheckpointFiles, shards: list[WeightFile]) -> None:
    """An index must not promise tensors that its shards lack."""
    for file in shards if files.index is not None else []:
        claimed = {n for n, shard in (files.index or {}).items() if shard == file.path.name}
        absent = claimed - set(file.shapes())
        if absent:
            raise CheckpointError(
                f"the index of {files.folder} is stale: {file.path.name} lacks "
                f"{shorten(sorted(absent))}",
                hint="index and shards are of different versions; download both again",
            )


class _Renamed:
    """A weight file seen under the canonical names of its family."""

    def __init__(self, file: WeightFile, family: Family) -> None:
        self.file, self.path = file, file.path
        self.names: dict[str, str] = {}
        for name in file.shapes():
            canonical = family.canonical(name)
            if canonical in self.names:
                raise CheckpointError(
                    f"{file.path} has one tensor twice: {self.names[canonical]} and {name}"
                )
            self.names[canonical] = name

    def shapes(self) -> Shapes:
        shapes = self.file.shapes()
        return {ours: shapes[theirs] for ours, theirs in self.names.items()}

    def dtypes(self) -> dict[str, torch.dtype | str]:
        dtypes = self.file.dtypes()
        return {ours: dtypes[theirs] for ours, theirs in self.names.items()}

    def get(self, name: str) -> Tensor:
        return self.file.get(self.names[name])

    def reopen(self) -> None:
        self.file.reopen()


def _check_num_ranks(files: CheckpointFiles, ranks: list[WeightFile]) -> None:
    first = ranks[0]
    declared = first.content.get("mp_world_size") if isinstance(first, PickleFile) else None
    if isinstance(declared, int) and declared != len(ranks):
        raise CheckpointError(
            f"{files.folder} was saved by {declared} tensor-parallel ranks, "
            f"but has {len(ranks)} mp_rank files",
            hint="all mp_rank files are needed",
        )
