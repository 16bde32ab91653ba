"""Calibration: weights rounded by GPTQ on passages of text, one block after the other.

The passages go through the network as it will be: block i sees what the quantized blocks before it
made of them. Held are one block, the second moments of its inputs (one K x K matrix for each
different input: queries, keys and values share theirs), and a hidden state per passage. Embedding,
head and CodeGeeX's top block, if they are quantized, are rounded to nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.quant.blockwise import Blockwise, Inputs, State
from openglm.quant.gptq import quantize_calibrated
from openglm.quant.linear import Packed
from openglm.quant.transform import WEIGHT, QuantizedWeights, named
from openglm.scheme import Scheme

BLOCKS = "layers."


class CalibratedWeights(QuantizedWeights):
    """`QuantizedWeights`, those of the blocks rounded by GPTQ; blocks are asked for in order.

    Args:
        weights: every parameter of the plain network.
        config: its architecture.
        scheme: with groups.
        passages: what calibrates.
        activation_order: see `quantize_calibrated`.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        config: ModelConfig,
        scheme: Scheme,
        passages: Sequence[Inputs],
        activation_order: bool = False,
    ) -> None:
        super().__init__(weights, config, scheme)
        self.passages, self.activation_order = passages, activation_order
        self.plain, self.coarse = Blockwise(config, weights), Blockwise(config, self, scheme)
        self.states: list[State] = []
        self.done = 0
        self.block: dict[str, Tensor] = {}

    def __iter__(self) -> Iterator[str]:
        """Names in the order in which the blocks compute."""
        return iter(sorted(super().__iter__(), key=_block_of))

    def quantize(self, name: str) -> dict[str, Tensor]:
        """See `QuantizedWeights.quantize`; the first weight of a block calibrates all of it."""
        index = _block_of(name)
        if index < 0:
            return super().quantize(name)
        if index == self.done:
            self._calibrate(index)
        assert index == self.done - 1, f"{name}: block {self.done - 1} was calibrated last"
        path = name.removesuffix(WEIGHT)
        return {key: tensor for key, tensor in self.block.items() if key.startswith(path + ".")}

    def _calibrate(self, index: int) -> None:
        self.states = self.states if index else self.coarse.begin(self.passages)
        part = f"{BLOCKS}{index}."
        self.block = {}
        with self.plain.holding(part):
            block = self.plain.network.layers[index]
            moments = Moments(block)
            for state in self.states:
                self.plain.through_block(index, state)
                moments.end_of_pass()
            moments.remove()
            for name, linear in block.named_modules():
                layer = self.layers.get(f"{part}{name}{WEIGHT}")
                if isinstance(layer, Packed) and isinstance(linear, nn.Linear):
                    packed = quantize_calibrated(
                        linear.weight, moments.of(name), layer.packing, self.activation_order
                    )
                    self.block |= named(f"{part}{name}{WEIGHT}", packed)
        self.done = index + 1
        with self.coarse.holding(part):
            for state in self.states:
                state.hidden = self.coarse.through_block(index, state)


class Moments:
    """The sums of x x^T over the inputs x of each linear layer of a block.

    Args:
        block: is watched from now on.
    """

    def __init__(self, block: nn.Module) -> None:
        self.sums: list[Tensor] = []
        self.number: dict[str, int] = {}
        self.inputs: list[Tensor] = []
        self.hooks = [
            module.register_forward_pre_hook(self._watch(name))
            for name, module in block.named_modules()
            if isinstance(module, nn.Linear)
        ]

    def of(self, name: str) -> Tensor:
        """(K, K) float32 of the layer with this name."""
        return self.sums[self.number[name]]

    def end_of_pass(self) -> None:
        """Forgets the inputs of a pass, which layers of one input are told by."""
        self.inputs.clear()

    def remove(self) -> None:
        """Stops watching."""
        for hook in self.hooks:
            hook.remove()

    def _watch(self, name: str) -> Any:
        def add(module: nn.Module, arguments: tuple[Tensor]) -> None:
            (x,) = arguments
            known = [number for number, other in enumerate(self.inputs) if other is x]
            if known:
                self.number[name] = known[0]
                return
            self.number[name] = len(self.inputs)
            self.inputs.append(x)
            rows = x.flatten(0, -2).float()  # (T, K)
            if len(self.sums) < len(self.inputs):
                self.sums.append(torch.zeros(rows.shape[1], rows.shape[1]))
            self.sums[self.number[name]].addmm_(rows.T, rows)

        return add


def _block_of(name: str) -> int:
    """The number of a weight's block, -1 for weights outside."""
    number = name.removeprefix(BLOCKS).partition(".")[0]
    return int(number) if name.startswith(BLOCKS) else -1
