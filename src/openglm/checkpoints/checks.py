"""The comparison of weight files with the network they claim to be; names what does not fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from openglm.checkpoints.files import FLOAT_DTYPES, WeightFile
from openglm.checkpoints.maps import Row
from openglm.errors import CheckpointError, shorten, suggest


def check_names_and_shapes(
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
        f"{title} ({len(names)}): {shorten(names)}"
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


def check_dtypes(
    ranks: list[list[WeightFile]], rows: dict[str, Row], parameters: Mapping[str, Tensor]
) -> torch.dtype:
    """The commonest floating-point dtype of weights that are not quantized.

    Where the network has integers, or the float16 scales of groups, files must have them, too;
    elsewhere any floating-point type will do.
    """
    found: Counter[torch.dtype] = Counter()
    for shards in ranks:
        for shard in shards:
            shapes = shard.shapes()
            for name, dtype in shard.dtypes().items():
                targets = rows[name].targets
                wanted = parameters[targets[0]].dtype if targets else torch.float32
                allowed = FLOAT_DTYPES if wanted == torch.float32 else (wanted,)
                if isinstance(dtype, str) or dtype not in allowed:
                    names = ", ".join(str(d).removeprefix("torch.") for d in allowed)
                    raise CheckpointError(
                        f"{shard.path}: {name} has dtype {dtype}; it must be "
                        f"{'' if len(allowed) == 1 else 'one of '}{names}",
                        hint="does the quantization in config.json fit the weights?",
                    )
                found[dtype] += prod(shapes[name]) if wanted == torch.float32 else 0
    return found.most_common(1)[0][0]
