"""`ModelConfig`: an architecture as a frozen value with a small set of closed axes. No torch here.

Every axis is chosen once, when the network is built (`openglm.model.build`); `forward` never asks.

    axis        values                    who
    position    learned_2d                all GLM checkpoints: position + block-position tables
                learned                   GLM without block positions (masked LM training)
    activation  gelu_tanh                 Megatron/DeepSpeed files of GLM (Megatron's fused GELU)
                gelu_erf                  Hugging Face files of GLM (`transformers` GELU)
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from openglm.errors import ConfigError, suggest

Position = Literal["learned_2d", "learned"]
Activation = Literal["gelu_tanh", "gelu_erf"]

AXES: dict[str, tuple[str, ...]] = {
    "position": get_args(Position),
    "activation": get_args(Activation),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One architecture of the GLM family.

    Sizes are counts, `norm_eps` is LayerNorm's epsilon, dropouts are training probabilities.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    intermediate_size: int
    position: Position = "learned_2d"
    activation: Activation = "gelu_tanh"
    norm_eps: float = 1e-5
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    hidden_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name))
        for name, allowed in AXES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}"
                )
        for name in ("embedding_dropout", "attention_dropout", "hidden_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name}={getattr(self, name)} must be in [0, 1)")
        for name in ("norm_eps", "initializer_range"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and not negative")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def position_rows(self) -> int:
        """Rows of each position table: one more than the sequence length with block positions."""
        return self.max_position_embeddings + (self.position == "learned_2d")

    @property
    def num_parameters(self) -> int:
        """Exact parameter count from the shapes (the output head is the tied embedding)."""
        c, f = self.hidden_size, self.intermediate_size
        block = (4 * c * c + 4 * c) + (2 * c * f + f + c) + 4 * c  # attention, MLP, two norms
        tables = self.position_rows * c * (2 if self.position == "learned_2d" else 1)
        return self.vocab_size * c + tables + self.num_layers * block + 2 * c

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelConfig:
        """Builds a config from plain values; an unknown or missing key is a `ConfigError`."""
        if not isinstance(values, dict):
            raise ConfigError(f"the model config is {values!r}, not a table of sizes")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"unknown model config key {key!r}", hint=suggest(key, fields))
        required = [n for n, f in fields.items() if f.default is dataclasses.MISSING]
        missing = [n for n in required if n not in values]
        if missing:
            raise ConfigError(f"model config lacks {', '.join(missing)}")
        return cls(**values)


def _check_type(name: str, value: object) -> None:
    """Rejects a value of the wrong type; sizes must be positive integers."""
    hint = get_type_hints(ModelConfig)[name]
    if hint is int and (type(value) is not int or value <= 0):
        raise ConfigError(f"{name}={value!r} must be a positive integer")
    if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{name}={value!r} must be a number")
