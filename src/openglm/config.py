"""`ModelConfig`: an architecture as a frozen value with a small set of closed axes. No torch here.

Every axis is chosen once, when the network is built (`openglm.model.build`); `forward` never asks.

    axis                values            who
    position            learned_2d        GLM: position + block-position tables
                        learned           GLM without block positions, CodeGeeX
                        rotary            GLM-130B, ChatGLM2/3, GLM-4, CodeGeeX2
                        rotary_2d         ChatGLM-6B: half of each head turns with each position
    rotary_pairing      half_split        GLM-130B, ChatGLM-6B: element j turns with j + half
                        interleaved       ChatGLM2/3, GLM-4: element 2j turns with 2j + 1
    rotary_compute      float32           ChatGLM3, GLM-4: angles are exact
                        float16           GLM-130B, ChatGLM-6B, ChatGLM2 as released and trained
                        bfloat16          CodeGeeX2 as released
    rotary_frequencies  float32           rounded nowhere
                        float16           GLM-130B, ChatGLM-6B: rounded before anything else
                        as_compute        ChatGLM2, CodeGeeX2: every step in `rotary_compute`
    norm                layernorm         GLM, GLM-130B, ChatGLM-6B, CodeGeeX
                        rmsnorm           ChatGLM2/3, GLM-4, CodeGeeX2
    residual            pre               x + f(norm(x))
                        sandwich          x + norm(f(norm(x))): GLM-4-0414
                        deepnorm          a * n + f(n), n = norm(x): GLM-130B, ChatGLM-6B
    activation          gelu_tanh         Megatron/DeepSpeed files of GLM, ChatGLM-6B
                        gelu_erf          Hugging Face files of GLM (`transformers` GELU)
                        gelu_sigmoid      CodeGeeX: x * sigmoid(1.702 x)
                        geglu             GLM-130B: up(x) * gelu(gate(x))
                        swiglu            ChatGLM2/3, GLM-4: up(x) * silu(gate(x))
    context             explicit          what attends both ways is said per call; else causal
                        until_sop         GLM-130B, ChatGLM-6B: all before the `sop` token
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from openglm.errors import ConfigError, suggest

Position = Literal["learned_2d", "learned", "rotary", "rotary_2d"]
RotaryPairing = Literal["half_split", "interleaved"]
RotaryCompute = Literal["float32", "float16", "bfloat16"]
RotaryFrequencies = Literal["float32", "float16", "as_compute"]
Norm = Literal["layernorm", "rmsnorm"]
Residual = Literal["pre", "sandwich", "deepnorm"]
Activation = Literal["gelu_tanh", "gelu_erf", "gelu_sigmoid", "geglu", "swiglu"]
Context = Literal["explicit", "until_sop"]

AXES: dict[str, tuple[str, ...]] = {
    "position": get_args(Position),
    "rotary_pairing": get_args(RotaryPairing),
    "rotary_compute": get_args(RotaryCompute),
    "rotary_frequencies": get_args(RotaryFrequencies),
    "norm": get_args(Norm),
    "residual": get_args(Residual),
    "activation": get_args(Activation),
    "context": get_args(Context),
}
GATED = ("geglu", "swiglu")
LARGEST_SIZE = 2**30
"""The bytes of a tensor of two such sizes still fit the 64 bits that torch has for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One architecture of the GLM family.

    Sizes are counts, `norm_eps` is the epsilon of all norms, dropouts are training probabilities.

    Args:
        num_layers: ordinary blocks; the top-query block of CodeGeeX is not counted, as officially.
        num_key_value_heads: shared by groups of query heads; None = as many as query heads.
        rotary_dim: elements of each head that turn, the rest passes through; None = all.
        rope_theta: base of the rotary frequencies.
        residual_scale: the `a` of deepnorm.
        linear_bias: of the output projection of attention and of the MLP.
        top_query: a last block whose queries come from a position table (CodeGeeX-13B).
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    intermediate_size: int
    num_key_value_heads: int | None = None
    position: Position = "learned_2d"
    rotary_dim: int | None = None
    rotary_pairing: RotaryPairing = "half_split"
    rotary_compute: RotaryCompute = "float32"
    rotary_frequencies: RotaryFrequencies = "float32"
    rope_theta: float = 10000.0
    norm: Norm = "layernorm"
    norm_eps: float = 1e-5
    residual: Residual = "pre"
    residual_scale: float = 1.0
    activation: Activation = "gelu_tanh"
    context: Context = "explicit"
    qkv_bias: bool = True
    linear_bias: bool = True
    tie_word_embeddings: bool = True
    top_query: bool = False
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
        for name in ("norm_eps", "initializer_range", "residual_scale", "rope_theta"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"{name}={getattr(self, name)} must be finite and not negative")
        self._check_heads()
        self._check_positions()

    def _check_heads(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not divisible by "
                f"num_attention_heads={self.num_attention_heads}"
            )
        if self.num_attention_heads % self.kv_heads:
            raise ConfigError(
                f"num_attention_heads={self.num_attention_heads} is not divisible by "
                f"num_key_value_heads={self.kv_heads}"
            )
        planes = 2 if self.position == "rotary_2d" else 1
        if self.is_rotary and (
            self.rotary_width > self.head_dim or self.rotary_width % (2 * planes)
        ):
            raise ConfigError(
                f"rotary_dim={self.rotary_width} must be a multiple of {2 * planes} and at most "
                f"the head_dim of {self.head_dim}"
            )

    def _check_positions(self) -> None:
        if self.rope_theta == 0:
            raise ConfigError("rope_theta=0 must be above 0")
        if self.top_query and self.is_rotary:
            raise ConfigError(f"top_query goes with learned positions, not with {self.position}")
        if self.rotary_dim is not None and not self.is_rotary:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} means nothing with {self.position} positions"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def is_rotary(self) -> bool:
        """Whether positions turn queries and keys instead of being added to the embedding."""
        return self.position in ("rotary", "rotary_2d")

    @property
    def is_causal(self) -> bool:
        """Whether a prompt is read left to right; else it sees itself whole."""
        return self.context == "explicit" and (self.is_rotary or self.top_query)

    @property
    def rotary_width(self) -> int:
        """Elements of each head that turn."""
        return self.rotary_dim or self.head_dim

    @property
    def is_gated(self) -> bool:
        """Whether the MLP has a gate projection."""
        return self.activation in GATED

    @property
    def num_cached_layers(self) -> int:
        """Blocks with keys and values: the top-query block has them too."""
        return self.num_layers + self.top_query

    @property
    def position_rows(self) -> int:
        """Positions that exist; with block positions a table has one more than the sequence."""
        return self.max_position_embeddings + (self.position == "learned_2d")

    @property
    def num_parameters(self) -> int:
        """Exact parameter count from the shapes."""
        c, f, d = self.hidden_size, self.intermediate_size, self.head_dim
        qkv = (self.num_attention_heads + 2 * self.kv_heads) * d
        norm = c if self.norm == "rmsnorm" else 2 * c
        attention = qkv * (c + self.qkv_bias) + c * (c + self.linear_bias)
        mlp = (1 + self.is_gated) * f * (c + self.linear_bias) + c * (f + self.linear_bias)
        block = attention + mlp + norm * (4 if self.residual == "sandwich" else 2)
        num_tables = {"learned_2d": 2, "learned": 1}.get(self.position, 0) + self.top_query
        num_vocabularies = 1 if self.tie_word_embeddings else 2
        return (
            num_vocabularies * self.vocab_size * c
            + num_tables * self.position_rows * c
            + self.num_cached_layers * block
            + norm
        )

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
    is_size = hint is int or (hint == int | None and value is not None)
    if is_size and (type(value) is not int or not 0 < value <= LARGEST_SIZE):
        raise ConfigError(f"{name}={value!r} must be a positive integer, at most {LARGEST_SIZE}")
    if hint is float and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise ConfigError(f"{name}={value!r} must be a number")
    if hint is bool and type(value) is not bool:
        raise ConfigError(f"{name}={value!r} must be true or false")
