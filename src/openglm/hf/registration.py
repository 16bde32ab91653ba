"""Making transformers' `Auto` classes find ours."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
)

from openglm.hf.config import ChatGLM2Config, ChatGLMConfig, GlmTypeConfig
from openglm.hf.modeling import (
    ChatGLM2ForConditionalGeneration,
    ChatGLMForConditionalGeneration,
)
from openglm.hf.tokenization import ChatGLM4Tokenizer, ChatGLMTokenizer


class _NamesOnly(PreTrainedConfig):  # type: ignore[misc]
    """Stands in for a configuration where `AutoTokenizer.register` wants one.

    Tokenizers have to be found by the name in `tokenizer_config.json`. Were they registered for
    the configuration of the model, transformers 5.23 would take the code in the folder instead.
    """

    model_type = "openglm-names-only"


def register() -> None:
    """Registers configurations, models and tokenizers; again does no harm."""
    AutoConfig.register(ChatGLMConfig.model_type, ChatGLMConfig, exist_ok=True)
    AutoConfig.register(GlmTypeConfig.model_type, GlmTypeConfig, exist_ok=True)
    models = {
        ChatGLMConfig: ChatGLMForConditionalGeneration,
        ChatGLM2Config: ChatGLM2ForConditionalGeneration,
    }
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM):
        for config, model in models.items():
            auto.register(config, model, exist_ok=True)
    for tokenizer in (ChatGLMTokenizer, ChatGLM4Tokenizer):
        AutoTokenizer.register(_NamesOnly, slow_tokenizer_class=tokenizer, exist_ok=True)
