"""Writing checkpoints: openglm, hf, megatron and sat folders, each exactly invertible."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.checkpoints.describe import MADE_BY, QUANTIZATION
from openglm.checkpoints.layouts import FORMAT_VERSION, TRACKERS
from openglm.checkpoints.maps import FAMILIES, Family, Row
from openglm.checkpoints.maps.family import Json
from openglm.checkpoints.maps.table import SCALE
from openglm.checkpoints.planned import Specs, plan_safetensors, plan_torch
from openglm.checkpoints.source import Source
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, UsageError, suggest
from openglm.model import build
from openglm.quant.transform import SCALE as WEIGHT_SCALE
from openglm.quant.transform import WEIGHT, QuantizedWeights, quantized
from openglm.scheme import Scheme
from openglm.tokenizers import Tokenizer

SHARD_BYTES = 4 << 30
MEGATRON_TAG = "release"


@dataclass(frozen=True, slots=True)
class _Job:
    """What is to be written: `save_checkpoint`'s arguments, and the tensors' shapes and dtypes."""

    config: ModelConfig
    weights: Mapping[str, Tensor]
    specs: Specs
    scheme: Scheme | None
    made_by: dict[str, Any]
    num_ranks: int
    about: dict[str, Any]
    token_ids: dict[str, int]


def save_checkpoint(
    folder: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    layout: str,
    *,
    dtype: torch.dtype | None = None,
    tokenizer: Tokenizer | None = None,
    num_ranks: int = 1,
    about: dict[str, Any] | None = None,
    token_ids: dict[str, int] | None = None,
    scheme: Scheme | None = None,
    made_by: dict[str, Any] | None = None,
) -> None:
    """Writes `weights` (our names) as a checkpoint folder, atomically.

    Each weight is asked for once or a few times, and nothing is kept: with a `Source`, no more than
    one group of tensors is in memory.

    Args:
        folder: must not exist yet.
        config: the architecture.
        weights: every parameter of the network by our name.
        layout: openglm, hf, megatron or sat.
        dtype: of floating-point weights; None = each its own.
        tokenizer: its files go along.
        num_ranks: tensor-parallel degree, megatron and sat only.
        about: free metadata kept in an openglm folder.
        token_ids: ids of command tokens by role, for descriptions that hold them.
        scheme: how `weights` are quantized; None = what they say themselves (a `Source`,
            `QuantizedWeights`), or official integers told by their names.
        made_by: how group-wise integers were found, kept in an openglm folder.

    Raises:
        UsageError: unknown layout, a degree that does not divide the network, or quantized weights
            in a layout that has none.
        CheckpointError: the folder exists, or the layout cannot express the network.
    """
    if layout not in WRITERS:
        raise UsageError(f"unknown checkpoint layout {layout!r}", hint=suggest(layout, WRITERS))
    if os.path.lexists(folder):
        raise CheckpointError(f"{folder} exists already", hint="name a new folder")
    _check_degree(config, layout, num_ranks)
    scheme = check_weights(config, weights, scheme)
    _check_layout(scheme, layout)
    parameters = quantized(build(config), scheme).state_dict()
    specs = {
        name: parameter.to(dtype or _stored_dtype(weights, name))
        if parameter.dtype == torch.float32
        else parameter
        for name, parameter in parameters.items()
    }
    tables = (about or {}, token_ids or {})
    job = _Job(config, weights, specs, scheme, made_by or {}, num_ranks, *tables)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _check_disk(folder.parent, specs)
    building = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        WRITERS[layout](building, job)
        if tokenizer is not None:
            for name, path in tokenizer.files().items():
                shutil.copyfile(path, building / name)
            _write_json(building / "tokenizer_config.json", _tokenizer_config(tokenizer, layout))
        _make_readable(building)
        os.rename(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_openglm(folder: Path, job: _Job) -> None:
    description = {
        "format": "openglm",
        "format_version": FORMAT_VERSION,
        "model": job.config.to_dict(),
        "about": job.about,
        **({"token_ids": job.token_ids} if job.token_ids else {}),
        **_quantization(job),
    }
    _write_json(folder / "config.json", description)
    specs = {name: job.specs[name] for name in job.weights}  # a Source is read in its own order
    _write_shards(folder, specs, job.weights.__getitem__)


def _write_hf(folder: Path, job: _Job) -> None:
    family = _family(job.config, "hf", job.scheme)
    dtype = job.specs["word_embeddings.weight"].dtype  # norms may be wider
    values = {"torch_dtype": str(dtype).removeprefix("torch.")} | family.to_json(job.config)
    values |= family.token_json(job.token_ids) | _quantization(job)
    _write_json(folder / "config.json", values)
    rows = _rows(family, job)

    def read(name: str) -> Tensor:
        return rows[name].write([job.weights[target] for target in rows[name].targets], 0, 1)

    _write_shards(folder, _foreign_specs(rows, job), read)


def _write_ranks(folder: Path, job: _Job, layout: str) -> None:
    family = _family(job.config, layout)
    # The description makes the head count and the GELU variant part of the checkpoint.
    description = family.to_json(job.config) | family.token_json(job.token_ids)
    _write_json(folder / family.description_file, description)
    for tracker in TRACKERS:
        (folder / tracker).write_text(MEGATRON_TAG, encoding="utf-8")
    (folder / MEGATRON_TAG).mkdir()
    rows = _rows(family, job)
    specs = _foreign_specs(rows, job)
    _check_expressible(family, job, specs, description)

    def content(tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"module": family.nest(tensors), "mp_world_size": job.num_ranks, "iteration": 0}

    with ExitStack() as stack:
        files = []
        for rank in range(job.num_ranks):
            path = folder / MEGATRON_TAG / f"mp_rank_{rank:02d}_model_states.pt"
            files.append(stack.enter_context(plan_torch(path, specs, content)))
        for name, row in rows.items():
            tensors = [job.weights[target] for target in row.targets]
            for rank, file in enumerate(files):
                file.put(name, row.write(tensors, rank, job.num_ranks))


WRITERS: dict[str, Callable[[Path, _Job], None]] = {
    "openglm": _write_openglm,
    "hf": _write_hf,
    "megatron": partial(_write_ranks, layout="megatron"),
    "sat": partial(_write_ranks, layout="sat"),
}
RANK_LAYOUTS = ("megatron", "sat")
FLOATS_HINT = "--dtype float16 makes floats of them; openglm folders keep them"
OF_TRAINING = ("embedding_dropout", "attention_dropout", "hidden_dropout", "initializer_range")
"""What may be lost: it changes no number of a trained model."""


def _check_expressible(family: Family, job: _Job, specs: Specs, description: Json) -> None:
    """Reading rank files, which hold no architecture, must give back the same network."""
    assert family.from_shapes is not None
    shapes = {name: tuple(spec.shape) for name, spec in specs.items()}
    back = family.from_shapes(shapes, job.num_ranks, description).to_dict()
    ours = job.config.to_dict()
    lost = [key for key in sorted(back) if back[key] != ours[key] and key not in OF_TRAINING]
    if lost:
        told = ", ".join(f"{key}={ours[key]}" for key in lost)
        raise CheckpointError(
            f"rank files of {family.name} cannot say {told}", hint="write it as openglm"
        )


def _stored_dtype(weights: Mapping[str, Tensor], name: str) -> torch.dtype:
    if isinstance(weights, Source):
        return weights.dtypes[name]
    if isinstance(weights, QuantizedWeights):  # nothing is quantized only to look at its type
        path = name.removesuffix(WEIGHT_SCALE)
        plain = _stored_dtype(weights.weights, name if path == name else path + WEIGHT)
        is_coarse = path != name and plain == torch.bfloat16
        return torch.float32 if is_coarse else plain
    return weights[name].dtype


def _check_disk(place: Path, specs: Specs) -> None:
    """Refuses before the first byte what cannot fit."""
    needed, free = sum(spec.nbytes for spec in specs.values()), shutil.disk_usage(place).free
    if needed > free:
        raise CheckpointError(
            f"{place} has {free:,} bytes free; the weights have {needed:,}",
            hint="make room, or write elsewhere",
        )


def stored_scheme(config: ModelConfig, weights: Mapping[str, Tensor]) -> Scheme | None:
    """How weights are quantized, as they say or by the names of official ones."""
    if isinstance(weights, Source | QuantizedWeights):
        return weights.scheme
    name = "layers.0.attention.q_proj.weight"
    if name + SCALE not in weights:
        return None
    return Scheme(bits=8 if weights[name].shape[1] == config.hidden_size else 4)


def check_weights(
    config: ModelConfig, weights: Mapping[str, Tensor], scheme: Scheme | None = None
) -> Scheme | None:
    """The scheme; `CheckpointError` unless there is one tensor for every parameter."""
    scheme = scheme or stored_scheme(config, weights)
    missing = sorted(set(quantized(build(config), scheme).state_dict()) ^ set(weights))
    if missing:
        raise CheckpointError(f"these weights are missing or unknown: {', '.join(missing[:8])}")
    return scheme


def _check_layout(scheme: Scheme | None, layout: str) -> None:
    if scheme is not None and scheme.is_official and layout in RANK_LAYOUTS:
        raise UsageError(
            "quantized weights cannot be written as rank files", hint="write them as hf or openglm"
        )
    if scheme is not None and not scheme.is_official and layout != "openglm":
        raise UsageError(f"{scheme.name} weights cannot be written as {layout}", hint=FLOATS_HINT)


def _quantization(job: _Job) -> dict[str, Any]:
    if job.scheme is None:
        return {}
    if job.scheme.is_official:
        return {"quantization_bit": job.scheme.bits}
    return {QUANTIZATION: job.scheme.to_dict() | ({MADE_BY: job.made_by} if job.made_by else {})}


def _family(config: ModelConfig, layout: str, scheme: Scheme | None = None) -> Family:
    """The official files that can hold a network, so that reading them gives it back."""
    for family in FAMILIES:
        if not family.fits(config) or (scheme and not family.has_quantized_files):
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


def _rows(family: Family, job: _Job) -> dict[str, Row]:
    """Foreign name -> row, of the tensors that are written, in the order of their sources."""
    names = family.name_map(job.config).with_scales(job.specs)
    found = {n: row for n, row in names.expand(job.config.num_layers).items() if row.targets}
    place = {name: number for number, name in enumerate(job.weights)}
    return dict(sorted(found.items(), key=lambda item: place[item[1].targets[0]]))


def _foreign_specs(rows: dict[str, Row], job: _Job) -> Specs:
    """What one rank holds."""
    specs = {}
    for name, row in rows.items():
        targets = [job.specs[target] for target in row.targets]
        shape = row.shape([tuple(target.shape) for target in targets], job.num_ranks)
        specs[name] = torch.empty(shape, dtype=targets[0].dtype, device="meta")
    return specs


def _write_shards(folder: Path, specs: Specs, read: Callable[[str], Tensor]) -> None:
    """Writes `model.safetensors`, or numbered shards of at most `SHARD_BYTES` with an index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, spec in specs.items():
        if shards[-1] and size + spec.nbytes > SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = spec
        size += spec.nbytes
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        part = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        weight_map |= dict.fromkeys(shard, f"model{part}.safetensors")
        with plan_safetensors(folder / f"model{part}.safetensors", shard) as file:
            for name in shard:
                file.put(name, read(name))
    if len(shards) > 1:
        total = {"total_size": sum(spec.nbytes for spec in specs.values())}
        index = {"metadata": total, "weight_map": weight_map}
        _write_json(folder / "model.safetensors.index.json", index)


def _make_readable(folder: Path) -> None:
    """Gives a folder of mkdtemp, which is private, the user's usual permissions."""
    umask = os.umask(0)
    os.umask(umask)
    folder.chmod(0o777 & ~umask)


def _check_degree(config: ModelConfig, layout: str, num_ranks: int) -> None:
    if num_ranks < 1:
        raise UsageError(f"{num_ranks} tensor-parallel ranks are not possible", hint="1 or more")
    if num_ranks > 1 and layout not in RANK_LAYOUTS:
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
