"""Quantization as a transform: of a built network, and of a mapping of weights.

`quantized` puts empty layers where a scheme has quantized weights; `QuantizedWeights` is the
mapping that fills them. Loading puts one into the other, `glm quantize` writes the mapping to
files; each tensor is quantized when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.kernels.packing import PackedWeight, dequantize
from openglm.model import Transformer, build
from openglm.quant.groupwise import quantize_groups
from openglm.quant.linear import Packed, PackedEmbedding, PackedLinear, RowwiseLinear
from openglm.quant.rowwise import pack_nibbles, quantize_rows
from openglm.scheme import Scheme

PARTS = ("layers", "top_layer")
"""Parts of a network whose linear layers are quantized, in the order in which they compute."""
WEIGHT, SCALE, MINIMUM = ".weight", ".weight_scale", ".weight_minimum"
"""Endings of the names of a quantized weight's tensors."""


def quantized(
    model: Transformer, scheme: Scheme | None, dtype: torch.dtype = torch.float32
) -> Transformer:
    """Puts empty quantized layers into a network, in place.

    Args:
        model: the network.
        scheme: what is quantized, and how; None changes nothing.
        dtype: what the network will compute in.
    """
    if scheme is None:
        return model
    for part in PARTS:
        for parent in list(getattr(model, part, nn.Module()).modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(parent, name, _layer(child, scheme))
    config = model.config
    if scheme.packs_embedding(config.tie_word_embeddings):
        with torch.device(model.device):
            sizes = (config.vocab_size, config.hidden_size)
            model.word_embeddings = PackedEmbedding(scheme, *sizes, dtype)
    if scheme.head and not config.tie_word_embeddings:
        model.lm_head = _layer(model.lm_head, scheme)  # type: ignore[assignment]
    return model


def _layer(linear: nn.Linear, scheme: Scheme) -> nn.Module:
    """An empty quantized layer of the same sizes."""
    sizes = linear.in_features, linear.out_features, linear.bias is not None
    with torch.device(linear.weight.device):
        if scheme.is_official:
            return RowwiseLinear(*sizes, scheme.bits)
        return PackedLinear(scheme, *sizes)


class QuantizedWeights(Mapping[str, Tensor]):
    """Weights of a network as a scheme has them, made from floats one by one.

    Args:
        weights: every parameter of the plain network.
        config: its architecture.
        scheme: how they are quantized.
    """

    def __init__(self, weights: Mapping[str, Tensor], config: ModelConfig, scheme: Scheme) -> None:
        self.weights, self.scheme = weights, scheme
        # ChatGLM-6B, told by its positions, rounds the scale to fp16 first.
        self.half_scale = config.position == "rotary_2d"
        self.layers = {
            f"{path}{WEIGHT}": layer
            for path, layer in quantized(build(config), scheme).named_modules()
            if isinstance(layer, Packed | RowwiseLinear)
        }
        self.names = dict.fromkeys(chain.from_iterable(map(self._tensors_of, weights)))
        self.made: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        """One tensor; those of the same weight are kept until another weight is asked for."""
        path, _, leaf = name.rpartition(".")
        weight = path + WEIGHT
        if weight not in self.layers or leaf == "bias":
            return self.weights[name]
        if name not in self.made:
            self.made = {}
            self.made = self.quantize(weight)
        return self.made[name]

    def __iter__(self) -> Iterator[str]:
        """Names in the order of the plain weights, scales behind what they belong to."""
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)

    def _tensors_of(self, name: str) -> list[str]:
        layer = self.layers.get(name)
        leaves = [] if layer is None else [leaf for leaf, _ in layer.named_parameters()]
        path = name.removesuffix(WEIGHT)
        return [name, *(f"{path}.{leaf}" for leaf in leaves if leaf not in ("weight", "bias"))]

    def quantize(self, name: str) -> dict[str, Tensor]:
        """The tensors of one quantized weight, by name."""
        layer, plain = self.layers[name], self.weights[name]
        if isinstance(layer, Packed):
            return named(name, quantize_groups(plain, layer.packing))
        assert isinstance(layer, RowwiseLinear)
        if plain.dtype == torch.bfloat16:  # too coarse to divide in; no official integers exist
            plain = plain.float()
        values, scale = quantize_rows(plain, layer.bits, self.half_scale)
        stored = pack_nibbles(values) if layer.bits == 4 else values
        path = name.removesuffix(WEIGHT)
        return {name: stored, path + SCALE: scale}


class DequantizedWeights(Mapping[str, Tensor]):
    """The plain weights that group-wise quantized ones stand for, made one by one.

    Args:
        weights: every parameter of the quantized network.
        config: its architecture.
        scheme: with groups.
        dtype: of the floats.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        scheme: Scheme,
        dtype: torch.dtype,
    ) -> None:
        self.weights, self.dtype = weights, dtype
        self.names = dict.fromkeys(n for n in weights if not n.endswith((SCALE, MINIMUM)))
        self.layers = {
            f"{path}{WEIGHT}": layer
            for path, layer in quantized(build(config), scheme).named_modules()
            if isinstance(layer, Packed)
        }

    def __getitem__(self, name: str) -> Tensor:
        layer = self.layers.get(name)
        if layer is None:
            return self.weights[name].to(self.dtype)
        path = name.removesuffix(WEIGHT)
        minimum = self.weights.get(path + MINIMUM)
        packed = (self.weights[name], self.weights[path + SCALE], minimum)
        sizes = (layer.packing, layer.out_features, layer.in_features)
        return dequantize(PackedWeight(*sizes, *packed), self.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def __len__(self) -> int:
        return len(self.names)


def named(weight: str, packed: PackedWeight) -> dict[str, Tensor]:
    """The tensors of a packed weight, by name; `weight` is the name of its values."""
    path = weight.removesuffix(WEIGHT)
    found = {weight: packed.values, path + SCALE: packed.scale}
    return found if packed.minimum is None else found | {path + MINIMUM: packed.minimum}


def assign(
    model: nn.Module, name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | str
) -> None:
    """Makes a tensor a parameter of a network.

    Args:
        model: whose parameter of this name has the dtype that it must have: integers and the
            scales of groups have theirs, float32 stands for the dtype that is computed in. Only a
            row's scale stays as it is: rounded to bfloat16, it would move the row by up to 0.2 %.
        name: of the parameter.
        tensor: its new value.
        dtype: that is computed in.
        device: where it goes.
    """
    path, _, leaf = name.rpartition(".")
    layer = model.get_submodule(path)
    fixed = layer.get_parameter(leaf).dtype
    if isinstance(layer, RowwiseLinear) and leaf == SCALE[1:]:
        fixed = tensor.dtype
    elif fixed == torch.float32:
        fixed = dtype
    placed = tensor.to(device, fixed).contiguous()
    setattr(layer, leaf, nn.Parameter(placed, requires_grad=False))
