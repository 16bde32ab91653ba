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
from openglm.checkpoints.maps import FAMILIES, Family, NameMap, Row
from openglm.checkpoints.maps.table import SCALE
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, ConfigError, suggest
from openglm.log import logger
from openglm.model import Transformer, build
from openglm.quant.linear import RowwiseLinear, rowwise
from openglm.quant.rowwise import LARGEST, pack_nibbles, quantize_rows

LISTED = 8
"""Names shown of a longer list."""
MANY_LAYERS = 1000
"""A description of more layers is compared with the weights before the network is built."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A network with its weights.

    Args:
        model: in eval mode.
        config: its architecture.
        folder: where it came from.
        layout: of the folder: openglm, hf or megatron.
        token_ids: ids of command tokens by role, as far as the folder says.
        stored_dtype: of the weights in the files.
        metadata: the `about` table of an openglm folder, {} for others.
        bits: of official row-wise quantized weights, 8 or 4; 0 = not quantized.
    """

    model: Transformer
    config: ModelConfig
    folder: Path
    layout: str
    token_ids: dict[str, int]
    stored_dtype: torch.dtype
    metadata: dict[str, Any]
    bits: int


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
    exact_rotary: bool = False,
    bits: int = 0,
) -> Loaded:
    """Loads any checkpoint folder known to `openglm.checkpoints.layouts`.

    Memory: the final weights plus one tensor; files are memory-mapped.

    Args:
        folder: the checkpoint.
        dtype: of the parameters; None = as stored.
        device: where they go.
        description: what a Megatron folder does not say, like {"num_attention_heads": 64}; used
            where there is no description beside it.
        exact_rotary: compute rotary angles in float32, where the released model does not.
        bits: 8 or 4 quantizes the weights of the blocks by the official row-wise scheme, tensor by
            tensor; 0 leaves them as stored.

    Raises:
        CheckpointError: see `open_weights`, `detect`; or tensors are missing, unexpected, of a
            wrong shape or of a dtype that weights cannot have.
    """
    with _naming(folder):
        files = detect(folder)
        if files.layout == "megatron" and description:
            files = dataclasses.replace(files, config=description | files.config)
        return _load(folder, files, dtype, device, exact_rotary, bits)


def _load(
    folder: Path,
    files: CheckpointFiles,
    dtype: torch.dtype | None,
    device: torch.device | str,
    exact_rotary: bool,
    bits: int,
) -> Loaded:
    family, ranks = _open(files)
    shapes = [_joined_shapes(shards) for shards in ranks]
    config = _config(files, family, shapes[0], len(ranks))
    if exact_rotary:
        exact: dict[str, Any] = dict.fromkeys(("rotary_compute", "rotary_frequencies"), "float32")
        config = dataclasses.replace(config, **exact)
    if config.num_layers > max(len(shapes[0]), MANY_LAYERS):
        raise CheckpointError(
            f"num_layers={config.num_layers}, but the weights have {len(shapes[0])} tensors in all"
        )
    stored_bits = _bits(files, len(ranks))
    if stored_bits and bits not in (0, stored_bits):
        raise CheckpointError(
            f"the weights are quantized to {stored_bits} bits and cannot be brought to {bits}",
            hint=f"load them with dtype=int{stored_bits} or auto, or take the fp16 files",
        )
    bits = stored_bits or bits
    model = rowwise(build(config), bits)
    parameters = dict(rowwise(build(config), stored_bits).named_parameters())  # as in the files
    names = (
        NameMap(tuple(Row(n, (n,)) for n in parameters))
        if family is None
        else family.name_map(config).with_scales(parameters)
    )
    rows = names.expand(config.num_layers)
    wanted = {name: tuple(p.shape) for name, p in parameters.items()}
    _check(folder, wanted, rows, shapes)
    stored = _check_dtypes(ranks, rows, parameters)
    for row, tensors in _tensors(rows, ranks):
        _warn_if_copies_differ(row, tensors)
        parts = row.read(tensors, [wanted[target] for target in row.targets])
        for name, tensor in zip(row.targets, parts, strict=True):
            _place(model, name, tensor, dtype or stored, device)
    _warn_if_repetitions_differ(model, rows, ranks)
    about = _about(files)
    return Loaded(
        model.eval(), config, folder, files.layout, _token_ids(files, family), stored, about, bits
    )


def describe_checkpoint(folder: Path) -> tuple[ModelConfig, str, dict[str, Any]]:
    """Architecture, layout and `about` table of a folder; weights are opened, not read."""
    with _naming(folder):
        files = detect(folder)
        family, ranks = _open(files)
        config = _config(files, family, _joined_shapes(ranks[0]), len(ranks))
        return config, files.layout, _about(files)


def _open(files: CheckpointFiles) -> tuple[Family | None, list[list[WeightFile]]]:
    """The family (None: openglm's own), and the weight files by rank under canonical names."""
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
        f"{len(names)} tensors: {_shorten(sorted(names))}"
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


def _check_index(files: CheckpointFiles, shards: list[WeightFile]) -> None:
    """An index must not promise tensors that its shards lack."""
    for file in shards if files.index is not None else []:
        claimed = {n for n, shard in (files.index or {}).items() if shard == file.path.name}
        absent = claimed - set(file.shapes())
        if absent:
            raise CheckpointError(
                f"the index of {files.folder} is stale: {file.path.name} lacks "
                f"{_shorten(sorted(absent))}",
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

    def shapes(self) -> dict[str, tuple[int, ...]]:
        shapes = self.file.shapes()
        return {ours: shapes[theirs] for ours, theirs in self.names.items()}

    def dtypes(self) -> dict[str, torch.dtype | str]:
        dtypes = self.file.dtypes()
        return {ours: dtypes[theirs] for ours, theirs in self.names.items()}

    def get(self, name: str) -> Tensor:
        return self.file.get(self.names[name])


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
    files: CheckpointFiles,
    family: Family | None,
    shapes: dict[str, tuple[int, ...]],
    num_ranks: int,
) -> ModelConfig:
    if family is None:
        version = files.config.get("format_version")
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"config.json has format_version={version!r}; this openglm reads {FORMAT_VERSION}",
                hint="install a newer openglm",
            )
        return ModelConfig.from_dict(files.config.get("model", {}))
    if files.layout == "hf" and family.from_json is not None:
        return family.from_json(files.config)
    if family.from_shapes is None:
        raise CheckpointError(f"rank files of {family.name} are not known")
    return family.from_shapes(shapes, num_ranks, files.config)


def _about(files: CheckpointFiles) -> dict[str, Any]:
    about = files.config.get("about", {})
    return about if isinstance(about, dict) else {}


def _bits(files: CheckpointFiles, num_ranks: int) -> int:
    """Bits of quantized weights, as the description says; 0 for none."""
    bits = files.config.get("quantization_bit") or 0
    if files.config.get("quantization_embeddings"):
        raise CheckpointError(
            "quantized embeddings (the withdrawn int4-qe files) are not supported",
            hint="take the int4 files, which keep them in fp16",
        )
    if bits not in (0, *LARGEST):
        raise CheckpointError(f"quantization_bit={bits!r} is not one of 8, 4, or 0 for none")
    if bits and num_ranks > 1:
        raise CheckpointError(
            "quantized rank files cannot be joined: each rank has scales of its own",
            hint="convert the files in fp16 first, then quantize",
        )
    return int(bits)


def _token_ids(files: CheckpointFiles, family: Family | None) -> dict[str, int]:
    found = files.config.get("token_ids", {}) if family is None else family.token_ids(files.config)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json has token_ids={found!r}; it must be a table")
    for role, token in found.items():
        if type(token) is not int:
            raise CheckpointError(f"the id of the token {role!r} is {token!r}, not a whole number")
    return dict(found)


def _check(
    folder: Path,
    wanted: dict[str, tuple[int, ...]],
    rows: dict[str, Row],
    shapes: list[dict[str, tuple[int, ...]]],
) -> None:
    """Compares names and shapes of all ranks with the network; raises with three lists."""
    missing: list[str] = []
    unexpected: list[str] = []
    wrong: list[str] = []
    for rank, present in enumerate(shapes):
        suffix = f" (rank {rank})" if len(shapes) > 1 else ""
        missing += [n + suffix for n, row in rows.items() if n not in present and not row.optional]
        unexpected += [name + suffix for name in present if name not in rows]
        for name, row in rows.items():
            if name in present and row.targets:
                expected = row.shape([wanted[target] for target in row.targets], len(shapes))
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


def _check_dtypes(
    ranks: list[list[WeightFile]], rows: dict[str, Row], parameters: dict[str, nn.Parameter]
) -> torch.dtype:
    """The dtype of the floating-point weights; int8 must be where the network has it, only."""
    found: Counter[torch.dtype] = Counter()
    for shards in ranks:
        for shard in shards:
            for name, dtype in shard.dtypes().items():
                targets = rows[name].targets
                wants_int8 = bool(targets) and parameters[targets[0]].dtype == torch.int8
                if wants_int8 != (dtype == torch.int8) or isinstance(dtype, str):
                    floats = ", ".join(str(d).removeprefix("torch.") for d in FLOAT_DTYPES)
                    allowed = "int8 (it is quantized)" if wants_int8 else f"one of {floats}"
                    raise CheckpointError(
                        f"{shard.path}: {name} has dtype {dtype}; it must be {allowed}",
                        hint="does quantization_bit in config.json fit the weights?",
                    )
                found[dtype] += not wants_int8
    return found.most_common(1)[0][0]


def _tensors(
    rows: dict[str, Row], ranks: list[list[WeightFile]]
) -> Iterator[tuple[Row, list[Tensor]]]:
    holders = [{name: shard for shard in shards for name in shard.shapes()} for shards in ranks]
    for name, row in rows.items():
        if row.targets:
            yield row, [holder[name].get(name) for holder in holders]


def _warn_if_copies_differ(row: Row, tensors: list[Tensor]) -> None:
    if row.split is None and any(not torch.equal(tensors[0], other) for other in tensors[1:]):
        logger.warning(
            "%s differs between tensor-parallel ranks; rank 0 is used, as officially", row.source
        )


def _warn_if_repetitions_differ(
    model: Transformer, rows: dict[str, Row], ranks: list[list[WeightFile]]
) -> None:
    """A tied head that differs from the embedding does not count, as in the official code."""
    for name, row in rows.items():
        holders = [shard for shard in ranks[0] if row.repeats and name in shard.shapes()]
        if row.repeats and holders and len(ranks) == 1:
            first = model.get_parameter(row.repeats)
            if not torch.equal(holders[0].get(name).to(first.dtype), first.cpu()):
                logger.warning("%s differs from %s, which it is tied to", name, row.repeats)


def _place(
    model: Transformer, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Puts a tensor of the files into the network, quantized if the network wants integers."""
    layer = model.get_submodule(name.rpartition(".")[0])
    if tensor.dtype == torch.int8:
        _assign(model, name, tensor.to(device))
    elif isinstance(layer, RowwiseLinear) and name.endswith(".weight"):
        # ChatGLM-6B, told by its positions, rounds the scale first.
        half_scale = model.config.position == "rotary_2d"
        values, scale = quantize_rows(tensor, layer.bits, half_scale)
        _assign(model, name, (pack_nibbles(values) if layer.bits == 4 else values).to(device))
        _assign(model, name + SCALE, scale.to(device, dtype))
    else:
        _assign(model, name, tensor.to(device, dtype))


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor.contiguous(), requires_grad=False))


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
