"""The official module tree over our network, so that tools find modules under their old names.

LoRA recipes say `target_modules=["query_key_value"]`, adapter files in the wild are keyed by
`transformer.encoder.layers.0.self_attention.query_key_value`. `official_tree` takes the layers out
of a network and puts them into such a tree, by the family's name map; where one official layer
holds several of ours, it is a fused one. The network gets stand-ins, which look the official module
up on every call: what peft puts in its place is what computes.

    network.layers.0.attention.q_proj ─ Slice 0 ┐
    network.layers.0.attention.k_proj ─ Slice 1 ┼ Fused ─ ...self_attention.query_key_value
    network.layers.0.attention.v_proj ─ Slice 2 ┘
    network.layers.0.attention.o_proj ─ Whole ─────────── ...self_attention.dense
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from openglm.checkpoints.maps import NameMap, Row
from openglm.model import Transformer
from openglm.quant.linear import RowwiseLinear


class Part(nn.Module):
    """An inner node of the official tree: it holds modules and computes nothing itself."""


class Layer(GradientCheckpointingLayer):  # type: ignore[misc]
    """A block of the network in the official tree, so that checkpointing and hooks find it.

    The block is not registered: its layers are below this module already, under official names.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.__dict__["block"] = block

    def forward(self, *inputs: Any) -> Tensor:
        """See `openglm.model.transformer.PreNormBlock.forward`."""
        return self.block(*inputs)  # type: ignore[no-any-return]

    def train(self, mode: bool = True) -> Layer:
        """Switches the dropout of the block as well."""
        self.block.train(mode)
        super().train(mode)
        return self


@dataclass(slots=True)
class Whole:
    """Stands for a module of the network that is one official module."""

    parent: nn.Module
    name: str

    @property
    def module(self) -> nn.Module:
        """The official module, as it is now."""
        return getattr(self.parent, self.name)  # type: ignore[no-any-return]

    def __call__(self, *inputs: Any) -> Tensor:
        """What the official module makes of its inputs."""
        return self.module(*inputs)  # type: ignore[no-any-return]

    @property
    def weight(self) -> Tensor:
        """The weight of the official module."""
        return self.module.weight  # type: ignore[return-value]


@dataclass(slots=True)
class Fused:
    """An official layer that computes several layers of the network at once.

    It runs once per input: what the first slice computes is kept until the last one has its part.
    The network asks for all slices of one input in turn (`Attention`, `GatedMLP`).

    Args:
        parent: of the official layer.
        name: of the layer in it.
        sizes: number of outputs of each slice.
        group: outputs of a slice that lie together, see `Row.group`; None = all of them.
    """

    parent: nn.Module
    name: str
    sizes: Sequence[int]
    group: int | None
    _input: Tensor | None = None
    _slices: dict[int, Tensor] = field(default_factory=dict)

    def take(self, index: int, x: Tensor) -> Tensor:
        """Slice `index` of what the layer makes of (..., in) `x`."""
        if self._input is not x or index not in self._slices:
            self._slices = dict(enumerate(self._cut(getattr(self.parent, self.name)(x))))
        taken = self._slices.pop(index)
        self._input = x if self._slices else None
        return taken

    def _cut(self, outputs: Tensor) -> Sequence[Tensor]:
        """(..., out) -> each slice (..., size): the inverse of how `Row.write` stacks rows."""
        if self.group is None:
            return torch.split(outputs, list(self.sizes), dim=-1)
        shape = (*outputs.shape[:-1], -1, len(self.sizes), self.group)
        grouped = outputs.reshape(shape)  # (..., heads, slices, group)
        return [part.flatten(-2) for part in grouped.unbind(-2)]


@dataclass(frozen=True, slots=True)
class Slice:
    """Stands for a layer of the network that is part of a fused official one."""

    fused: Fused
    index: int

    def __call__(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., size)."""
        return self.fused.take(self.index, x)


def official_tree(root: nn.Module, network: Transformer, names: NameMap) -> None:
    """Moves the layers of `network` below `root` under their official names.

    Args:
        root: gets the tree; weights are moved, a fused one is copied once and its parts dropped.
        network: keeps the computation, over stand-ins.
        names: the name map of its family, with scales if it is quantized.
    """
    modules: dict[str, dict[str, Row]] = {}
    for source, row in names.expand(network.config.num_layers).items():
        path, _, leaf = source.rpartition(".")
        if row.targets:
            modules.setdefault(path, {})[leaf] = row
    for path, rows in modules.items():
        targets = [target.rpartition(".")[0] for target in rows["weight"].targets]
        layers = [network.get_submodule(target) for target in targets]
        parent, name = _make_parent(root, path, network)
        setattr(parent, name, layers[0] if len(layers) == 1 else _fuse(layers, rows))
        if len(layers) == 1:
            _replace(network, targets[0], Whole(parent, name))
            continue
        fused = Fused(parent, name, [_num_outputs(x) for x in layers], rows["weight"].group)
        for index, target in enumerate(targets):
            _replace(network, target, Slice(fused, index))
    layers_path = next(path for path in modules if ".layers." in path).partition(".0.")[0]
    official_layers = root.get_submodule(layers_path)
    stand_ins = [Whole(official_layers, name) for name, _ in official_layers.named_children()]
    del network.layers
    network.layers = stand_ins  # type: ignore[assignment]


def _make_parent(root: nn.Module, path: str, network: Transformer) -> tuple[nn.Module, str]:
    """The module above `path`, made with all above it where missing, and the last name."""
    steps = path.split(".")
    module = root
    for step, below in pairwise(steps):
        if not hasattr(module, step):
            if step.isdecimal():
                inner: nn.Module = Layer(network.layers[int(step)])
            else:
                inner = nn.ModuleList() if below.isdecimal() else Part()
            module.add_module(step, inner)
        module = getattr(module, step)
    return module, steps[-1]


def _fuse(layers: Sequence[nn.Module], rows: dict[str, Row]) -> nn.Module:
    """One layer that computes what all of `layers` compute, plain or quantized as they are."""
    first = layers[0]
    num_inputs, num_outputs = _num_inputs(first), sum(_num_outputs(layer) for layer in layers)
    with torch.device("meta"):
        fused: nn.Module = (
            RowwiseLinear(num_inputs, num_outputs, False, first.bits)
            if isinstance(first, RowwiseLinear)
            else nn.Linear(num_inputs, num_outputs, False)
        )
    for name, parameter in first.named_parameters():
        parts = [layer.get_parameter(name).detach() for layer in layers]
        whole = nn.Parameter(rows[name].write(parts, 0, 1), parameter.requires_grad)
        setattr(fused, name, whole)
    return fused


def _num_inputs(layer: nn.Module) -> int:
    packed = 2 if isinstance(layer, RowwiseLinear) and layer.bits == 4 else 1
    return packed * layer.get_parameter("weight").shape[1]


def _num_outputs(layer: nn.Module) -> int:
    return layer.get_parameter("weight").shape[0]


def _replace(network: nn.Module, path: str, stand_in: Whole | Slice) -> None:
    """Puts a stand-in, which is no module, where a module was."""
    above, _, name = path.rpartition(".")
    parent = network.get_submodule(above)
    delattr(parent, name)
    setattr(parent, name, stand_in)
