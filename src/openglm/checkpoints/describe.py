"""What a checkpoint folder says of itself: architecture, quantization, ids of command tokens."""

from __future__ import annotations

from typing import Any

from openglm.checkpoints.layouts import FORMAT_VERSION, CheckpointFiles
from openglm.checkpoints.maps import Family
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.scheme import BITS, Scheme

QUANTIZATION, MADE_BY = "quantization", "made_by"
"""In the `config.json` of openglm folders: the table of a `Scheme`, and in it how the integers were
found, which loading does not need."""


def read_config(
    files: CheckpointFiles,
    family: Family | None,
    shapes: dict[str, tuple[int, ...]],
    num_ranks: int,
) -> ModelConfig:
    """The architecture; `shapes` are those of rank 0."""
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


def read_about(files: CheckpointFiles) -> dict[str, Any]:
    """The free metadata of an openglm folder, {} for others."""
    about = files.config.get("about", {})
    return about if isinstance(about, dict) else {}


def read_scheme(files: CheckpointFiles, num_ranks: int) -> Scheme | None:
    """How the weights are quantized, as the description says; None if they are not."""
    bits = files.config.get("quantization_bit") or 0
    table = files.config.get(QUANTIZATION) if files.layout == "openglm" else None
    if files.config.get("quantization_embeddings"):
        raise CheckpointError(
            "quantized embeddings (the withdrawn int4-qe files) are not supported",
            hint="take the int4 files, which keep them in fp16",
        )
    if bits not in (0, *BITS):
        raise CheckpointError(f"quantization_bit={bits!r} is not one of 8, 4, or 0 for none")
    if bits and num_ranks > 1:
        raise CheckpointError(
            "quantized rank files cannot be joined: each rank has scales of its own",
            hint="convert the files in fp16 first, then quantize",
        )
    if table is None:
        return Scheme(bits=bits) if bits else None
    if bits or not isinstance(table, dict):
        raise CheckpointError(
            f"config.json has quantization={table!r} and quantization_bit={bits}; it must have "
            "one of them, the first as a table"
        )
    return Scheme.from_dict({key: value for key, value in table.items() if key != MADE_BY})


def read_token_ids(files: CheckpointFiles, family: Family | None) -> dict[str, int]:
    """Ids of command tokens by role, as far as the folder says."""
    found = files.config.get("token_ids", {}) if family is None else family.token_ids(files.config)
    if not isinstance(found, dict):
        raise CheckpointError(f"config.json has token_ids={found!r}; it must be a table")
    for role, token in found.items():
        if type(token) is not int:
            raise CheckpointError(f"the id of the token {role!r} is {token!r}, not a whole number")
    return dict(found)
