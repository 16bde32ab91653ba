"""LoRA: a trained product of two thin matrices beside each frozen one (Hu et al. 2021).

    y = x W^T + alpha / rank * dropout(x) A^T B^T        A (rank, in), B (out, rank), B = 0 at first

Sites are the linear layers of the official files. Where one of them holds several of ours
(`query_key_value`), these share A and have their rows of B, so that files of other programs fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from openglm.adapters.frozen import frozen_linear
from openglm.checkpoints.maps import FAMILIES, Family, Row, glm4
from openglm.config import ModelConfig
from openglm.errors import ConfigError
from openglm.model import Transformer

WEIGHT = ".weight"
FIRST = ("q_proj", "k_proj", "v_proj")
"""Layers of ours that are adapted unless others are named, as in the official recipes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraConfig:
    """Which layers are adapted, and by how much. Defaults: the recipe of ChatGLM3's authors.

    Args:
        rank: of the trained product.
        alpha: it is multiplied by alpha / rank.
        dropout: of what goes into it, in training.
        targets: official names of layers, like query_key_value; [] = those of queries, keys and
            values.
    """

    rank: int = 8
    alpha: float = 32.0
    dropout: float = 0.1
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"lora.rank={self.rank} must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"lora.alpha={self.alpha} must be above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout={self.dropout} must be in [0, 1)")


class LoraLinear(nn.Module):
    """A frozen layer and what is trained beside it.

    Args:
        base: (..., in) -> (..., out); float or quantized.
        a: (rank, in), float32; others may have the same.
        out_features: of `base`.
        config: of the adapter.
    """

    def __init__(
        self, base: nn.Module, a: nn.Parameter, out_features: int, config: LoraConfig
    ) -> None:
        super().__init__()
        self.base = base
        self.lora_a = a
        self.lora_b = nn.Parameter(torch.zeros(out_features, len(a), device=a.device))
        self.scale = config.alpha / config.rank
        self.dropout_probability = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        dropped = dropout(x, self.dropout_probability, self.training).to(self.lora_a.dtype)
        thin = linear(linear(dropped, self.lora_a), self.lora_b)
        return frozen_linear(self.base, x) + (self.scale * thin).to(x.dtype)

    def product(self) -> Tensor:
        """What is added to the weight of `base`, (out, in)."""
        return self.scale * (self.lora_b @ self.lora_a)


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer of the official files.

    Args:
        name: official, like `transformer.encoder.layers.0.self_attention.query_key_value`.
        targets: names of the modules of the network that it holds, in order.
        row: how the rows of these are stacked.
    """

    name: str
    targets: tuple[str, ...]
    row: Row


def sites(config: ModelConfig, family: Family | None = None) -> list[list[Site]]:
    """All linear layers of the blocks, by official names; several layouts may have such a network.

    Args:
        config: of the network.
        family: whose names come first; None = those of the authors' own code.

    Raises:
        ConfigError: none has.
    """

    # Layouts with a config.json are those whose names other programs know.
    def later(each: Family) -> tuple[bool, bool, bool]:
        return each is not family, each.from_json is None, each is glm4.FAMILY

    families = sorted(FAMILIES, key=later)
    found = [_sites(family, config) for family in families if family.fits(config)]
    if not found:
        raise ConfigError("there are no official names for the layers of this network")
    return found


def _sites(family: Family, config: ModelConfig) -> list[Site]:
    rows = family.name_map(config).expand(config.num_layers)
    return [
        Site(name.removesuffix(WEIGHT), tuple(t.removesuffix(WEIGHT) for t in row.targets), row)
        for name, row in rows.items()
        if row.targets and name.endswith(WEIGHT) and row.targets[0].endswith("_proj" + WEIGHT)
    ]


def chosen_sites(
    config: ModelConfig, targets: Sequence[str], family: Family | None = None
) -> list[Site]:
    """The sites that `LoraConfig.targets` names, in the first layout that has them all.

    Raises:
        ConfigError: this network has no layers of such names.
    """
    layouts = sites(config, family)
    if not targets:
        return [site for site in layouts[0] if all(_leaf(name) in FIRST for name in site.targets)]
    for every in layouts:
        if {_leaf(site.name) for site in every} >= set(targets):
            return [site for site in every if _leaf(site.name) in targets]
    known = [sorted({_leaf(site.name) for site in every}) for every in layouts]
    raise ConfigError(
        f"this model has no layers {', '.join(map(repr, sorted(targets)))}",
        hint=f"its layers are {'; or '.join(', '.join(names) for names in known)}",
    )


def add_lora(
    model: Transformer, config: LoraConfig, seed: int, family: Family | None = None
) -> None:
    """Puts adapters into a network, which computes as before; all else is frozen.

    Args:
        model: float or quantized.
        config: of the adapter.
        seed: of A, which is drawn as peft does: uniform within 1 / sqrt(in).
        family: whose names `targets` are; see `sites`.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for site in chosen_sites(model.config, config.targets, family):
        bases = [model.get_submodule(name) for name in site.targets]
        width = in_features(model.config, site.targets[0])
        a = torch.empty(config.rank, width)
        a.uniform_(-1 / math.sqrt(width), 1 / math.sqrt(width), generator=generator)
        shared = nn.Parameter(a.to(model.device))
        for name, base in zip(site.targets, bases, strict=True):
            layer = LoraLinear(base, shared, out_features(model.config, name), config)
            _put(model, name, layer)


def adapted(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """The adapted layers of a network, by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            yield name, module


@torch.no_grad()
def merge(model: Transformer) -> None:
    """Adds the products to the frozen weights, which must be floats, and removes the adapters.

    Raises:
        ConfigError: the weights are quantized.
    """
    for name, layer in list(adapted(model)):
        if not isinstance(layer.base, nn.Linear):
            raise ConfigError(
                "an adapter cannot be merged into quantized weights",
                hint="load the model in floats; glm quantize takes the merged one",
            )
        weight = layer.base.weight
        weight.data = (weight.float() + layer.product()).to(weight.dtype)
        _put(model, name, layer.base)


def tensors(
    model: Transformer, targets: Sequence[str], family: Family | None = None
) -> dict[str, Tensor]:
    """A and B of the chosen sites, by official name: `NAME.lora_A.weight`, `NAME.lora_B.weight`."""
    layers = dict(adapted(model))
    found: dict[str, Tensor] = {}
    for site in chosen_sites(model.config, targets, family):
        own = [layers[name] for name in site.targets]
        found[f"{site.name}.lora_A.weight"] = own[0].lora_a.data
        parts = [layer.lora_b.data for layer in own]
        found[f"{site.name}.lora_B.weight"] = site.row.write(parts, 0, 1)
    return found


@torch.no_grad()
def set_tensors(
    model: Transformer,
    targets: Sequence[str],
    given: Mapping[str, Tensor],
    family: Family | None = None,
) -> None:
    """Fills the adapters of a network with what `tensors` gave; every name must be there."""
    layers = dict(adapted(model))
    for site in chosen_sites(model.config, targets, family):
        own = [layers[name] for name in site.targets]
        own[0].lora_a.copy_(given[f"{site.name}.lora_A.weight"])
        shapes = [tuple(layer.lora_b.shape) for layer in own]
        parts = site.row.read([given[f"{site.name}.lora_B.weight"]], shapes)
        for layer, part in zip(own, parts, strict=True):
            layer.lora_b.copy_(part)


def in_features(config: ModelConfig, name: str) -> int:
    """Columns of a linear layer of the blocks, by our name."""
    return config.intermediate_size if _leaf(name) == "down_proj" else config.hidden_size


def out_features(config: ModelConfig, name: str) -> int:
    """Rows of a linear layer of the blocks, by our name."""
    leaf = _leaf(name)
    if leaf in ("k_proj", "v_proj"):
        return config.kv_heads * config.head_dim
    return config.intermediate_size if leaf in ("gate_proj", "up_proj") else config.hidden_size


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, layer)
