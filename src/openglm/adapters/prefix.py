"""P-Tuning v2: trained keys and values in front of every layer's own (Liu et al. 2021).

The official files hold `transformer.prefix_encoder.*`: a table of the keys and values themselves,
or a smaller table and two linear layers that make them (`PrefixEncoder`, which is trained). Both
are evaluated once, at load.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from openglm.checkpoints.files import FLOAT_DTYPES, WeightFile, open_weights
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, ConfigError
from openglm.nn.cache import Prefix

NAME = "transformer.prefix_encoder."
TABLE = "embedding.weight"
PROJECTION = ("trans.0.weight", "trans.0.bias", "trans.2.weight", "trans.2.bias")
SAVED = "adapter_model.safetensors"
FILES = ("model.safetensors", SAVED, "pytorch_model.bin")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixConfig:
    """What is trained. Defaults: the recipe of ChatGLM-6B's authors.

    Args:
        length: slots in front of the tokens, P.
        projection: two layers make the keys and values of a smaller table.
        dropout: of keys and values, in training.
    """

    length: int = 128
    projection: bool = False
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ConfigError(f"ptuning.length={self.length} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"ptuning.dropout={self.dropout} must be in [0, 1)")


class PrefixEncoder(nn.Module):
    """The trained table, in the modules of ChatGLM-6B's code.

    ChatGLM2's differs where there is a projection: its table is as wide as keys and values are.

    Args:
        config: of the network.
        settings: of the prefix.
        seed: of what it begins with: N(0, 1), and torch's own for the layers, as officially.

    Raises:
        ConfigError: a network whose topmost block has no place for a prefix (CodeGeeX-13B).
    """

    def __init__(self, config: ModelConfig, settings: PrefixConfig, seed: int) -> None:
        super().__init__()
        if config.top_query:
            raise ConfigError("the block on top of this model takes no prefix", hint="use lora")
        self.shape = (2 * config.num_layers, config.kv_heads, config.head_dim)
        self.dropout_probability = settings.dropout
        width, inner = math.prod(self.shape), config.hidden_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(settings.length, inner if settings.projection else width)
            self.trans: nn.Module = nn.Identity()
            if settings.projection:
                layers = (nn.Linear(inner, inner), nn.Tanh(), nn.Linear(inner, width))
                self.trans = nn.Sequential(*layers)

    def forward(self) -> Prefix:
        """Keys and values of all layers."""
        slots = self.trans(self.embedding.weight)  # (P, 2 * L * K * D)
        return _prefix(dropout(slots, self.dropout_probability, self.training), self.shape)


def save_prefix(folder: Path, encoder: PrefixEncoder) -> None:
    """Writes the trained table under its official names."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{NAME}{name}": each.contiguous() for name, each in encoder.state_dict().items()}
    save_file(tensors, folder / SAVED)


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
    return _prefix(slots, shape)


def _prefix(slots: Tensor, shape: tuple[int, int, int]) -> Prefix:
    """(P, 2 * L * K * D) numbers, key and value of each layer in turn, by layer."""
    split = slots.unflatten(1, shape)  # type: ignore[no-untyped-call]  # (P, 2L, K, D)
    return Prefix(split[:, 0::2].transpose(0, 1), split[:, 1::2].transpose(0, 1))


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
