"""`generate` of transformers with the positions, masks and cache of these models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin

from openglm.engine.implied import implied_positions
from openglm.errors import RequestError
from openglm.hf.backbone import Backbone
from openglm.hf.cache import GLMCache
from openglm.hf.inputs import next_positions, padding_of
from openglm.model import Transformer


class OfficialGenerationMixin(GenerationMixin):  # type: ignore[misc]
    """The places where `generate` asks a model for what is special about it."""

    transformer: Backbone

    @property
    def network(self) -> Transformer:
        """What computes; its layers are modules of this model."""
        return self.transformer.network

    @property
    def token_ids(self) -> dict[str, int]:
        """Ids of command tokens by role."""
        return self.transformer.token_ids

    def generate(self, inputs: Tensor | None = None, **options: Any) -> Any:
        """See transformers. The (B, 1, T, T) mask of ChatGLM-6B's tokenizer is taken as well."""
        mask = options.get("attention_mask")
        if mask is not None and mask.dim() == 4:
            # The last token sees all that is not padding; the rest follows from the ids.
            options["attention_mask"] = (~mask[:, 0, -1].bool()).long()
        return super().generate(inputs, **options)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: GLMCache | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | None = None,
        is_first_iteration: bool = False,
        **others: Any,
    ) -> dict[str, Any]:
        """What `generate` feeds to `forward`: the last tokens, with positions and mask."""
        if next_sequence_length is not None:
            input_ids = input_ids[:, -next_sequence_length:]
        if position_ids is not None:
            position_ids = position_ids[..., -input_ids.shape[1] :]
        return {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": logits_to_keep or 0,
            **others,
        }

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *rest: Any
    ) -> None:
        """`generate` makes its own cache unless there is one."""
        if generation_config.cache_implementation is not None:
            raise RequestError(
                f"cache_implementation={generation_config.cache_implementation!r} is not supported",
                hint="leave it out",
            )
        if generation_config.use_cache and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = GLMCache()

    def _prepare_position_ids_for_generation(
        self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]
    ) -> Tensor | None:
        """Positions of the prompt; None with a filled cache, whose tokens count as well."""
        cache = model_kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return None
        ids = inputs_tensor.cpu()
        real = padding_of(model_kwargs.get("attention_mask"), ids.shape)
        both = implied_positions(self.network.config, self.token_ids, ids, real)
        has_blocks = self.network.config.position == "rotary_2d"
        return (torch.stack(both, dim=1) if has_blocks else both[0]).to(inputs_tensor.device)

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, **options: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats rows for beams; transformers takes (B, 2, T) positions for something else."""
        positions = options.pop("position_ids", None)
        ids, expanded = super()._expand_inputs_for_generation(expand_size, **options)
        if positions is not None:
            expanded["position_ids"] = positions.repeat_interleave(expand_size, dim=0)
        return ids, expanded

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *rest: Any, **more: Any
    ) -> dict[str, Any]:
        """Appends the positions of the new tokens."""
        positions = model_kwargs.pop("position_ids", None)
        model_kwargs = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *rest, **more
        )
        if positions is not None:
            count = more.get("num_new_tokens", 1)
            model_kwargs["position_ids"] = next_positions(positions, count)
        return model_kwargs
