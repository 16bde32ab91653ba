"""Configurations of the old model types for transformers, with the keys of the official files.

ChatGLM-6B and its successors share the model type `chatglm`; the keys in `config.json` tell them
apart. The GLM of 2021 and GLM-4 share `glm`; GLM-4 is native in transformers and stays so.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import GlmConfig, PreTrainedConfig
from transformers.models.auto.tokenization_auto import get_tokenizer_config

from openglm.checkpoints.maps import Family, chatglm, chatglm2
from openglm.config import ModelConfig
from openglm.errors import CheckpointError

TOKENIZER_CLASSES = ("ChatGLMTokenizer", "ChatGLM4Tokenizer")
"""`tokenizer_class` of the official folders."""
Values = dict[str, Any]


class OfficialConfig(PreTrainedConfig):  # type: ignore[misc]
    """A `config.json` of the official code; keys without a meaning here are kept as they are."""

    family: ClassVar[Family]
    model_type = "chatglm"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    tokenizer_class: str = TOKENIZER_CLASSES[0]
    use_cache: bool = True
    released_dtype: str | None = None
    """`torch_dtype` of the file: the precision of rotary angles, whatever the weights become."""

    def __post_init__(self, **values: Any) -> None:
        values.pop("auto_map", None)  # names code in the folder, which is never run
        self.released_dtype = values.get("torch_dtype", self.released_dtype)
        super().__post_init__(**values)

    @classmethod
    def from_dict(cls, config_dict: Values, **kwargs: Any) -> Any:
        """The configuration of a `config.json`.

        Raises:
            CheckpointError: the folder names a tokenizer that only its own code would define.
        """
        refuse_code(kwargs.get("name_or_path"))
        if "torch_dtype" in kwargs:  # asks for a dtype of the weights, and must not hide the file's
            kwargs["dtype"] = kwargs.pop("torch_dtype")
        return super().from_dict(config_dict, **kwargs)

    def to_diff_dict(self) -> Values:
        """The values of a `config.json` that openglm, and the official code, can read again."""
        return _as_official(super().to_diff_dict())

    def architecture(self) -> ModelConfig:
        """The architecture that these values describe; see `Family.from_json` for errors."""
        assert self.family.from_json is not None
        return self.family.from_json(_as_official(self.to_dict()))


class ChatGLMConfig(OfficialConfig):
    """ChatGLM-6B."""

    family: ClassVar[Family] = chatglm.FAMILY
    attribute_map: ClassVar[dict[str, str]] = {
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "max_sequence_length",
        "intermediate_size": "inner_hidden_size",
    }

    tie_word_embeddings: bool = True

    @classmethod
    def from_dict(cls, config_dict: Values, **kwargs: Any) -> Any:
        """The configuration of a `config.json` of the model type `chatglm`, of either kind."""
        is_later = chatglm2.FAMILY.recognises is not None and chatglm2.FAMILY.recognises(
            config_dict
        )
        if is_later and cls is ChatGLMConfig:
            return ChatGLM2Config.from_dict(config_dict, **kwargs)
        return super().from_dict(config_dict, **kwargs)


class ChatGLM2Config(OfficialConfig):
    """ChatGLM2-6B, ChatGLM3-6B, CodeGeeX2-6B, and GLM-4-9B in the layout of its own code."""

    family: ClassVar[Family] = chatglm2.FAMILY
    attribute_map: ClassVar[dict[str, str]] = {
        "vocab_size": "padded_vocab_size",
        "num_hidden_layers": "num_layers",
        "max_position_embeddings": "seq_length",
        "intermediate_size": "ffn_hidden_size",
        "num_key_value_heads": "multi_query_group_num",
    }

    tie_word_embeddings: bool = False


class GlmTypeConfig(PreTrainedConfig):  # type: ignore[misc]
    """What `AutoConfig` finds for the model type `glm`: GLM-4 is handed on to transformers' own.

    The GLM of 2021 has the same model type. Without this class it would be read as a GLM-4 with
    random weights, or by the code in its folder.
    """

    model_type = "glm"

    def __new__(cls, *args: Any, **values: Any) -> Any:
        return GlmConfig(*args, **values)

    @classmethod
    def from_dict(cls, config_dict: Values, **kwargs: Any) -> Any:
        """The native configuration.

        Raises:
            CheckpointError: a GLM of 2021.
        """
        if {"max_sequence_length", "block_position_encoding"} & config_dict.keys():
            name = kwargs.get("name_or_path", "this folder")
            raise CheckpointError(
                f"{name} is a GLM of 2021, which fills blanks; openglm.hf has the chat models only",
                hint="openglm.load(FOLDER).fill(...) runs it",
            )
        return GlmConfig.from_dict(config_dict, **kwargs)


def _as_official(values: Values) -> Values:
    """Values with `released_dtype` under its official key, which transformers reads otherwise."""
    released = values.pop("released_dtype", None)
    return values if released is None else values | {"torch_dtype": released}


def refuse_code(name: object) -> None:
    """Raises `CheckpointError` if a folder's tokenizer would be read by code from the folder.

    transformers runs that code under `trust_remote_code=True` for every class that is not
    registered under the name in `tokenizer_config.json`.

    Args:
        name: folder, or name on the hub, of which the default revision is looked at.
    """
    values = get_tokenizer_config(name) if name else {}
    declared = str(values.get("tokenizer_class")).removesuffix("Fast")
    if "auto_map" in values and declared not in TOKENIZER_CLASSES:
        raise CheckpointError(
            f"{name} brings code for its tokenizer (tokenizer_class="
            f"{values.get('tokenizer_class')!r}), and no code from a checkpoint is run",
            hint=f"tokenizers known here: {', '.join(TOKENIZER_CLASSES)}",
        )
