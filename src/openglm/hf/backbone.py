"""What the official code calls `transformer`: ids in, hidden states out, over our network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPast

from openglm.engine.implied import implied_mask, implied_positions
from openglm.errors import RequestError
from openglm.hf.cache import GLMCache
from openglm.hf.config import OfficialConfig
from openglm.hf.inputs import Inputs, padding_of
from openglm.hf.official import Layer
from openglm.model import Transformer
from openglm.nn.masks import MaskSpec


class Backbone(nn.Module):
    """A model without its head, which derives positions and masks from ids as the official code.

    Args:
        config: official values.
        network: computes; its layers will be the modules of this one.
        token_ids: ids of command tokens by role.
        counts_final_norm: the last of the hidden states comes after the final norm.
    """

    network: Transformer

    def __init__(
        self,
        config: OfficialConfig,
        network: Transformer,
        token_ids: dict[str, int],
        counts_final_norm: bool,
    ) -> None:
        super().__init__()
        self.config = config
        self.token_ids = token_ids
        self.counts_final_norm = counts_final_norm
        self.__dict__["network"] = network  # not registered: its layers are, under official names

    def train(self, mode: bool = True) -> Backbone:
        """Switches dropout on or off."""
        self.network.train(mode)
        super().train(mode)
        return self

    def blocks(self) -> list[Layer]:
        """The layers, `transformer.layers` or `transformer.encoder.layers`."""
        stand_ins: Any = self.network.layers
        return [stand_in.module for stand_in in stand_ins]

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GLMCache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> Any:
        """Hidden states after the final norm, (B, T, C). What is None follows from the ids.

        Args:
            input_ids: (B, T) int64.
            position_ids: (B, T); of ChatGLM-6B (B, 2, T): position and block position.
            attention_mask: (B, S) with 0 for padding; or bool (B, 1, T, S), True = blocked, as the
                tokenizer of ChatGLM-6B gives it.
            past_key_values: S - T earlier tokens; the new ones are added.
            inputs_embeds: not supported.
            use_cache: give a cache back; None = as configured, but never with gradients.
            output_attentions: not supported: the probabilities are never all held.
            output_hidden_states: give the embedding and every layer's output back, (B, T, C) each.
            return_dict: False gives a tuple.

        Raises:
            RequestError: an input that is not supported, or ids from which no positions follow.
        """
        if output_attentions or inputs_embeds is not None or input_ids is None:
            raise RequestError(
                "openglm.hf takes input_ids, not inputs_embeds, and gives no attentions",
                hint="leave out output_attentions and inputs_embeds",
            )
        cache = self._cache(past_key_values, use_cache)
        states: list[Tensor] = []
        inputs = Inputs(input_ids, position_ids, attention_mask)
        hooks = self._record(states) if self._wants(output_hidden_states) else []
        try:
            hidden = self._hidden(inputs, cache)
        finally:
            for hook in hooks:
                hook.remove()
        if states and self.counts_final_norm:
            states[-1] = hidden
        result = BaseModelOutputWithPast(
            last_hidden_state=hidden, past_key_values=cache, hidden_states=tuple(states) or None
        )
        return result if return_dict is not False else result.to_tuple()

    def _wants(self, hidden_states: bool | None) -> bool:
        return bool(self.config.output_hidden_states if hidden_states is None else hidden_states)

    def _cache(self, given: GLMCache | None, use_cache: bool | None) -> GLMCache | None:
        if given is not None and not isinstance(given, GLMCache):
            raise RequestError(
                f"past_key_values is a {type(given).__name__}, not a GLMCache",
                hint="pass the one that an earlier call gave back, or none",
            )
        if self.training and any(block.gradient_checkpointing for block in self.blocks()):
            return None  # the layers run twice, and would be cached twice
        if use_cache is None:
            use_cache = self.config.use_cache and not torch.is_grad_enabled()
        return GLMCache() if use_cache and given is None else given

    def _hidden(self, inputs: Inputs, cache: GLMCache | None) -> Tensor:
        """(B, T, C) after the final norm."""
        network, ids = self.network, inputs.input_ids
        store = None if cache is None else cache.reserve(network, *ids.shape)
        past = 0 if store is None else store.length
        every = ids.cpu()
        if store is not None:
            store.input_ids[:, past : past + ids.shape[1]] = every
            every = store.input_ids[:, : past + ids.shape[1]]
        real = padding_of(inputs.attention_mask, every.shape)
        positions, blocks = self._positions(inputs, every, real)
        mask = self._mask(inputs, every, real)
        device = network.device
        return network(  # type: ignore[no-any-return]
            ids.to(device), positions.to(device), blocks.to(device), mask.to(device), store
        )

    def _positions(
        self, inputs: Inputs, every: Tensor, real: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Positions and block positions of the T new tokens, (B, T) int64 each."""
        ids, given = inputs.input_ids, inputs.position_ids
        if given is None:
            implied = implied_positions(self.network.config, self.token_ids, every, real)
            start = every.shape[1] - ids.shape[1]
            return implied[0][:, start:], implied[1][:, start:]
        if given.dim() == 3:
            return given[:, 0], given[:, 1]
        given = given.expand_as(ids)
        return given, torch.zeros_like(given)

    def _mask(self, inputs: Inputs, every: Tensor, real: Tensor | None) -> MaskSpec:
        """Who sees whom, (B, T, S)."""
        num_queries = inputs.input_ids.shape[1]
        given = inputs.attention_mask
        if given is not None and given.dim() == 4:
            return MaskSpec.explicit(~given[:, 0, -num_queries:].bool())
        if num_queries == 1 and real is None:
            return MaskSpec.causal()
        spec = implied_mask(self.network.config, self.token_ids, every, real)
        num_keys = every.shape[1]
        if num_keys == num_queries:
            return spec
        return MaskSpec.explicit(spec.dense(num_keys, num_keys, every.device)[:, -num_queries:])

    def _record(self, states: list[Tensor]) -> list[Any]:
        """Hooks that put the embedding and every layer's output into `states`."""

        def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            states.append(inputs[0])

        def behind(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            states.append(output)

        layers = self.blocks()
        return [
            layers[0].register_forward_pre_hook(before),
            *(layer.register_forward_hook(behind) for layer in layers),
        ]
