"""The old model classes for transformers 5, over our networks; no second modelling file.

`OfficialModel` shows the modules and parameters of the official code, reads and writes its files
and has its methods. What is computed is `openglm.model`.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from openglm.errors import UsageError
from openglm.hf.backbone import Backbone
from openglm.hf.cache import GLMCache
from openglm.hf.chat import ChatMixin
from openglm.hf.config import ChatGLM2Config, ChatGLMConfig, OfficialConfig
from openglm.hf.generation import OfficialGenerationMixin
from openglm.hf.loading import load_pretrained
from openglm.hf.official import official_tree
from openglm.model import Transformer, build, initialize
from openglm.quant.linear import RowwiseLinear
from openglm.quant.rowwise import LARGEST

IGNORED = -100
"""Label of tokens that are not learned."""
LINEARS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""Official names of the layers in a block that are quantized."""


class OfficialModel(ChatMixin, OfficialGenerationMixin, PreTrainedModel):  # type: ignore[misc]
    """A causal language model with the module names of the official code.

    Args:
        config: official values.
        network: with its weights; None draws fresh ones.
        token_ids: ids of command tokens by role; None = those in `config`.

    Attributes:
        transformer: the model without its head.
    """

    config_class = OfficialConfig
    base_model_prefix = "transformer"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules: ClassVar[list[str]] = ["Layer"]
    _embedding_path: str
    _head_path: str
    _counts_final_norm: bool
    """Whether the last of the hidden states comes after the final norm, as officially."""

    def __init__(
        self,
        config: OfficialConfig,
        network: Transformer | None = None,
        token_ids: dict[str, int] | None = None,
    ) -> None:
        super().__init__(config)
        if network is None:
            network = build(config.architecture(), "cpu")
            initialize(network, int(torch.randint(2**31, ())))
            network.to(torch.get_default_dtype())
        tokens = config.family.token_ids(config.to_dict()) | (token_ids or {})
        self.transformer = Backbone(config, network, tokens, self._counts_final_norm)
        names = config.family.name_map(network.config).with_scales(dict(network.named_parameters()))
        official_tree(self, network, names)
        if network.config.tie_word_embeddings:
            weight = self.get_input_embeddings().get_parameter("weight")
            head = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            head.weight = weight
            self.add_module(self._head_path, head)
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """Loads a folder or a model of the hub; see `load_pretrained`."""
        return load_pretrained(cls, pretrained_model_name_or_path, *args, **options)

    def init_weights(self) -> None:
        """Nothing: the network came with its weights, or drew them."""

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding."""
        embedding: nn.Module = self.get_submodule(self._embedding_path)
        return embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Puts another module in place of the word embedding."""
        self.set_submodule(self._embedding_path, value)

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        head: nn.Module = self.get_submodule(self._head_path)
        return head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        """Puts another module in place of the head."""
        self.set_submodule(self._head_path, new_embeddings)

    def forward(
        self,
        input_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: GLMCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        return_last_logit: bool = False,
        logits_to_keep: int | Tensor = 0,
    ) -> Any:
        """Logits, and the loss if there are labels; for the other arguments see `Backbone.forward`.

        Args:
            input_ids: (B, T) int64.
            position_ids: see there.
            attention_mask: see there.
            past_key_values: see there.
            inputs_embeds: see there.
            labels: (B, T) int64, -100 = not learned; token t + 1 is the target of t.
            use_cache: see there.
            output_attentions: see there.
            output_hidden_states: see there.
            return_dict: False gives a tuple; None = as configured.
            return_last_logit: logits of the last token alone (ChatGLM2).
            logits_to_keep: so many last tokens, or these; 0 = all.
        """
        found = self.transformer(
            input_ids,
            position_ids,
            attention_mask,
            past_key_values,
            inputs_embeds,
            use_cache,
            output_attentions,
            output_hidden_states,
        )
        kept = 1 if return_last_logit else logits_to_keep
        part = slice(-kept, None) if isinstance(kept, int) else kept
        logits = self.get_output_embeddings()(found.last_hidden_state[:, part])  # (B, kept, V)
        result = CausalLMOutputWithPast(
            loss=None if labels is None else shifted_loss(logits, labels),
            logits=logits,
            past_key_values=found.past_key_values,
            hidden_states=found.hidden_states,
        )
        wants_dict = self.config.return_dict if return_dict is None else return_dict
        return result if wants_dict else result.to_tuple()

    def quantize(self, bits: int, *_: Any, **__: Any) -> Any:
        """Quantizes the linear layers of the blocks by the official scheme, in place.

        Args:
            bits: 8 or 4.

        Raises:
            UsageError: other bits, or the model is quantized to others already, or has adapters.
        """
        if bits not in LARGEST:
            raise UsageError(f"quantize({bits!r}): it must be 8 or 4")
        present = getattr(self.config, "quantization_bit", None) or 0
        if present not in (0, bits):
            raise UsageError(f"the model has {present} bits and cannot be brought to {bits}")
        if present == 0:
            for block in self.transformer.blocks():
                self._quantize_block(block, bits)
        self.config.quantization_bit = bits
        return self

    def _quantize_block(self, block: nn.Module, bits: int) -> None:
        half_scale = self.network.config.position == "rotary_2d"  # ChatGLM-6B
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if name not in LINEARS:
                    continue
                if type(layer) is not nn.Linear:
                    raise UsageError(
                        f"{name} is a {type(layer).__name__}, which cannot be quantized",
                        hint="merge adapters first: merge_and_unload()",
                    )
                setattr(parent, name, RowwiseLinear.quantized(layer, bits, half_scale))


def shifted_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy in float32 of the tokens that follow, as the official code has it."""
    targets = labels[:, 1:].to(logits.device).flatten()
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), targets, ignore_index=IGNORED)


class ChatGLMForConditionalGeneration(OfficialModel):
    """ChatGLM-6B."""

    config_class = ChatGLMConfig
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "lm_head.weight": "transformer.word_embeddings.weight"
    }
    _embedding_path = "transformer.word_embeddings"
    _head_path = "lm_head"
    _counts_final_norm = True
    yields_last_token = False


class ChatGLM2ForConditionalGeneration(OfficialModel):
    """ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B and GLM-4-9B in the layout of their own code."""

    config_class = ChatGLM2Config
    _embedding_path = "transformer.embedding.word_embeddings"
    _head_path = "transformer.output_layer"
    _counts_final_norm = False
    yields_last_token = True
