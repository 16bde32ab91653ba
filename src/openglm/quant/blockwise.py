"""A network that is computed block by block, for weights that need not fit into memory at once.

All passages go through a block before the next one is read: what is held is one block and a hidden
state per passage. Calibration and the measurement of quality go this way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openglm.config import ModelConfig
from openglm.model import build
from openglm.nn.context import DenseContext
from openglm.nn.masks import MaskSpec
from openglm.nn.rotary import Rotation
from openglm.process import return_freed_memory
from openglm.quant.transform import assign, quantized
from openglm.scheme import Scheme

EMBEDDING = ("word_embeddings.", "positions.")
"""Beginnings of the names of the weights that make hidden states of ids."""
TOP = ("final_norm.", "top_layer.", "top_queries.")
"""Likewise of what comes behind the blocks."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One passage as a network reads it.

    Args:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64.
        block_position_ids: (1, T) int64.
        mask: who sees whom.
    """

    input_ids: Tensor
    position_ids: Tensor
    block_position_ids: Tensor
    mask: MaskSpec

    @property
    def context(self) -> DenseContext:
        """Of a pass without cache."""
        return DenseContext(self.mask, self.input_ids.shape[1])


@dataclass(slots=True)
class State:
    """A passage on its way: (1, T, C) hidden states and what rotates queries and keys."""

    inputs: Inputs
    hidden: Tensor
    rotation: Rotation | None


class Blockwise:
    """A network of which only one part has weights at a time; it computes in float32.

    Args:
        config: the architecture.
        weights: its parameters as `scheme` has them, read part by part.
        scheme: how they are quantized.
    """

    def __init__(
        self, config: ModelConfig, weights: Mapping[str, Tensor], scheme: Scheme | None = None
    ) -> None:
        self.network = quantized(build(config), scheme).eval().requires_grad_(False)
        self.weights = weights

    @contextmanager
    def holding(self, *parts: str) -> Iterator[None]:
        """Has the weights whose names begin so; they are given back behind it."""
        names = [name for name in self.weights if name.startswith(parts)]
        for name in names:
            assign(self.network, name, self.weights[name], torch.float32, "cpu")
        yield
        for name in names:
            path, _, leaf = name.rpartition(".")
            layer = self.network.get_submodule(path)
            bare = layer.get_parameter(leaf).to("meta")
            setattr(layer, leaf, nn.Parameter(bare, requires_grad=False))
        return_freed_memory()

    def begin(self, passages: Sequence[Inputs]) -> list[State]:
        """Embeds all passages."""
        with self.holding(*EMBEDDING):
            return [State(inputs, *self._embed(inputs)) for inputs in passages]

    @torch.no_grad()
    def _embed(self, inputs: Inputs) -> tuple[Tensor, Rotation | None]:
        x = self.network.word_embeddings(inputs.input_ids)
        return self.network.positions(x, inputs.position_ids, inputs.block_position_ids)  # type: ignore[no-any-return]

    @torch.no_grad()
    def through_block(self, index: int, state: State) -> Tensor:
        """What block `index` makes of a state; it must be held."""
        layer = self.network.layers[index]
        return layer(state.hidden, state.rotation, state.inputs.context.layer(index))  # type: ignore[no-any-return]

    @torch.no_grad()
    def through_top(self, state: State) -> Tensor:
        """What the final norm, and CodeGeeX's top block, make of a state; they must be held."""
        normed = self.network.final_norm(state.hidden)
        return self.network.top(normed, state.inputs.position_ids, state.inputs.context)

    def run(self, passages: Sequence[Inputs]) -> list[Tensor]:
        """The hidden states (1, T, C) behind everything but the head."""
        states = self.begin(passages)
        for index in range(self.network.config.num_layers):
            with self.holding(f"layers.{index}."):
                for state in states:
                    state.hidden = self.through_block(index, state)
        with self.holding(*TOP):
            return [self.through_top(state) for state in states]

    @contextmanager
    def head(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Hidden states to logits, while it is held."""
        is_tied = self.network.config.tie_word_embeddings
        with self.holding("word_embeddings." if is_tied else "lm_head."):
            yield self.network.logits
