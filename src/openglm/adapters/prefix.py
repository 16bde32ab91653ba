"""P-Tuning v2: trained keys and values in front of every layer's own (Liu et al. 2021).

The official files hold `transformer.prefix_encoder.*`: a table of the keys and values themselves,
or a smaller table and two linear layers that make them. Both are evaluated once, at load.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import linear

from openglm.checkpoints.files import FLOAT_DTYPES, WeightFile, open_weights
from openglm.config import ModelConfig
from openglm.errors import CheckpointError
from openglm.nn.cache import Prefix

NAME = "transformer.prefix_encoder."
TABLE = "embedding.weight"
PROJECTION = ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
FILES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")


def load_prefix(path: Path, config: ModelConfig) -> Prefix:
    """Keys and values of an official P-Tuning v2 checkpoint.

    Args:
        path: its folder, or the file of weights in it.
        config: the network that it was trained for.

    Raises:
        CheckpointError: no prefix in it, or one for another network.
    """
    file = open_weights(_file(path))
    names = {n.removeprefix(NAME): n for n in file.shapes() if n.startswith(NAME)}
    wanted = {TABLE, *PROJECTION} if PROJECTION[0] in names else {TABLE}
    if set(names) != wanted:
        raise CheckpointError(
            f"{file.path} is no P-Tuning v2 checkpoint: it has "
            f"{', '.join(sorted(names)) or 'no prefix encoder'}, not {', '.join(sorted(wanted))}",
            hint=f"its tensors are named {NAME}{TABLE} and {NAME}trans.*",
        )
    _check_shapes(file, names)
    slots = _slots({n: file.get(full).float() for n, full in names.items()})  # (P, 2 * L * K * D)
    shape = (2 * config.num_layers, config.kv_heads, config.head_dim)
    width = shape[0] * shape[1] * shape[2]
    if slots.shape[1] != width:
        raise CheckpointError(
            f"{file.path} has prefixes of {slots.shape[1]} numbers; this model takes {width} "
            f"(2 x {config.num_layers} layers x {shape[1]} heads x {shape[2]})",
            hint="it was trained for another model",
        )
    slots = slots.unflatten(1, shape)  # type: ignore[no-untyped-call]  # (P, 2L, K, D)
    return Prefix(slots[:, 0::2].transpose(0, 1), slots[:, 1::2].transpose(0, 1))


def _check_shapes(file: WeightFile, names: dict[str, str]) -> None:
    """The table is (P, C'), the layers lead from C' through any width on; floats all."""
    shapes, dtypes = file.shapes(), file.dtypes()
    found = {name: shapes[full] for name, full in names.items()}
    fits = len(found[TABLE]) == 2 and all(dtypes[full] in FLOAT_DTYPES for full in names.values())
    if fits and len(found) > 1:
        first, first_bias, second, second_bias = (found[name] for name in PROJECTION)
        fits = len(first) == len(second) == 2 and (
            (first[1], first_bias, second[1], second_bias)
            == (found[TABLE][1], first[:1], first[0], second[:1])
        )
    if not fits:
        raise CheckpointError(
            f"{file.path}: shapes or dtypes of the prefix encoder do not fit each other: {found}"
        )


def _slots(tensors: dict[str, Tensor]) -> Tensor:
    """The table itself, or what tanh between two linear layers makes of it."""
    table = tensors[TABLE]
    if len(tensors) == 1:
        return table
    first, first_bias, second, second_bias = (tensors[name] for name in PROJECTION)
    return linear(torch.tanh(linear(table, first, first_bias)), second, second_bias)


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise CheckpointError(
        f"{path} holds no P-Tuning v2 checkpoint: none of {', '.join(FILES)} is there"
    )
