"""Will it fit? The memory of running or training a model, part by part. No torch.

`glm plan` prints it; the parts are arithmetic on shapes (`openglm.memory`), and what the libraries
take is measured.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from openglm.config import ModelConfig
from openglm.errors import UsageError
from openglm.memory import (
    KEPT_WIDTH,
    READ_AT_ONCE,
    READ_AT_ONCE_COMPILED,
    ROWS_AT_ONCE,
    WIDTHS,
    cache_bytes,
    cache_width,
    parse_dtype_name,
    prefill_bytes,
    saved_bytes,
    weight_bytes,
)

Device = Literal["cpu", "gpu"]
RUNTIME_BYTES = {"cpu": 270_000_000, "gpu": 750_000_000}
"""Of Python with torch on a CPU (measured, benchmarks/full_size.py); of CUDA's context, libraries
and allocator on a GPU (an allowance: the official figures leave 0.4 to 1.3 GB)."""
KEPT_FREED_BYTES = 64 << 20
"""What glibc keeps of freed blocks: twice its largest threshold for mapping them, mallopt(3)."""
DEFAULT_CONTEXT = 2048
"""Tokens planned for if nobody says how many."""
METHODS = ("full", "lora", "ptuning")
LORA_RANK = 8
"""Of ChatGLM3's fine-tuning scripts, on queries, keys and values."""
PREFIX_TOKENS = 128
"""Of ChatGLM's P-Tuning v2 scripts."""
TRAINED_BYTES = 16
"""Of a trained parameter: float32 weight, gradient and two moments of Adam."""
SPLIT_NOTE = (
    "split by attention heads, as the official code does it; openglm itself runs on one device "
    "so far"
)
_GPUS = re.compile(r"(?:(\d+)\s*x\s*)?(\d+(?:\.\d+)?)\s*(GiB|GB|G)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Gpus:
    """A number of like GPUs."""

    count: int
    bytes_each: float

    @classmethod
    def parse(cls, text: str) -> Gpus:
        """Reads `24GiB`, `4x24GiB` or `8x11GB`; a bare G is a GiB."""
        found = _GPUS.fullmatch(text.strip())
        count = int(found.group(1) or 1) if found else 0
        if found is None or count < 1:
            raise UsageError(
                f"--gpus {text!r} is not understood", hint="write 24GiB, 4x24GiB, 8x11GiB ..."
            )
        unit = 1e9 if found.group(3).lower() == "gb" else 2**30
        return cls(count, float(found.group(2)) * unit)


@dataclass(frozen=True, slots=True)
class Part:
    """One line of a plan: bytes on each device, and how they come about."""

    name: str
    bytes: int
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a model needs on each device.

    Args:
        parts: of the memory.
        available: bytes of the device, None if unknown.
        notes: what to know besides.
    """

    parts: list[Part]
    available: float | None
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Bytes on each device."""
        return sum(part.bytes for part in self.parts)

    @property
    def fits(self) -> bool | None:
        """Whether it fits; None if the memory is unknown."""
        return None if self.available is None else self.total <= self.available


def plan_inference(
    config: ModelConfig,
    dtype: str,
    context: int | None = None,
    batch_size: int = 1,
    device: Device = "cpu",
    num_devices: int = 1,
    available: float | None = None,
    is_compiled: bool = True,
    kv_dtype: str = "auto",
) -> Plan:
    """The memory of generating.

    Args:
        config: the architecture.
        dtype: of the weights; a key of `WIDTHS`, or the name of a `Scheme`.
        context: tokens of prompt and answer together; None = 2048, or what the model has.
        batch_size: sequences at once.
        device: where the model runs.
        num_devices: tensor-parallel degree; attention heads are shared out.
        available: bytes of each device.
        is_compiled: on the compiled kernels, which need no mask, and no floats of integer weights.
        kv_dtype: of keys and values; one of `KV_DTYPES`.

    Raises:
        UsageError: unknown dtypes, too long a context, a degree that does not divide the heads.
    """
    is_quantized = parse_dtype_name(dtype) is not None
    context = _context(config, context)
    _check_degree(config, num_devices)
    on_kernels = device == "cpu" and is_compiled
    kept_width = WIDTHS.get(dtype, 4 if device == "cpu" and not is_compiled else KEPT_WIDTH)
    weights = weight_bytes(config, dtype, kept_width)
    width = 4 if on_kernels else kept_width  # of what is computed
    kv_heads = max(config.kv_heads // num_devices, 1)
    held = cache_width(config, kv_dtype, width)
    cache = cache_bytes(config, context, held) * batch_size * kv_heads // config.kv_heads
    at_once = READ_AT_ONCE_COMPILED if on_kernels else READ_AT_ONCE
    piece = min(context, at_once) if config.is_causal else context
    masked = 0 if on_kernels else context
    whole = "a piece of a prompt" if piece < context else "a whole prompt"
    kept = f" in {dtype}, the rest {kept_width} bytes" if is_quantized else f" in {dtype}"
    shared = f", shared by {num_devices}" if num_devices > 1 else ""
    parts = [
        Part(
            "weights",
            weights // num_devices,
            f"{config.num_parameters:,} parameters{kept}{shared}",
        ),
        Part(
            "keys and values",
            cache,
            f"{batch_size} x {context:,} tokens x {cache // (batch_size * context):,} bytes"
            f"{f' in {kv_dtype}' * (kv_dtype != 'auto')}",
        ),
        Part(
            "activations",
            prefill_bytes(config, piece * batch_size, masked, width) // num_devices,
            f"{whole}: {batch_size} x {piece:,} tokens in the widest block",
        ),
        _libraries(device),
    ]
    if is_quantized and not is_compiled:
        row = max(config.hidden_size, config.intermediate_size)
        size = ROWS_AT_ONCE * row * (1 + 2 * width) + (KEPT_FREED_BYTES if device == "cpu" else 0)
        why = f"{ROWS_AT_ONCE:,} rows as integers and floats, and what is kept of freed ones"
        parts.insert(3, Part("workspace", size, why))
    notes = [SPLIT_NOTE] if num_devices > 1 else []
    return Plan(parts, available, notes)


def plan_training(
    config: ModelConfig,
    method: str,
    dtype: str,
    tokens: int | None = None,
    batch_size: int = 1,
    device: Device = "cpu",
    available: float | None = None,
) -> Plan:
    """The memory of a training step on one device.

    Args:
        config: the architecture.
        method: full, lora (rank 8 on queries, keys and values) or ptuning (128 prefix tokens).
        dtype: of the frozen weights; what is trained is float32.
        tokens: of each sequence; None = 2048, or what the model has.
        batch_size: sequences in a step.
        device: where it is trained.
        available: bytes of it.

    Raises:
        UsageError: unknown method or dtype, or full training of quantized weights.
    """
    is_quantized = parse_dtype_name(dtype) is not None
    tokens = _context(config, tokens) * batch_size
    trained = _trained_parameters(config, method)
    if method == "full" and is_quantized:
        raise UsageError(
            f"full training of {dtype} weights is not possible",
            hint="--train lora trains beside frozen integers",
        )
    width = 4 if device == "cpu" else KEPT_WIDTH
    frozen = 0 if method == "full" else weight_bytes(config, dtype, width)
    layer = saved_bytes(config, tokens, width)
    logits = 3 * tokens * config.vocab_size * 4
    parts = [
        Part("frozen weights", frozen, f"{config.num_parameters:,} parameters in {dtype}"),
        Part(
            "trained",
            trained * TRAINED_BYTES,
            f"{trained:,} parameters x {TRAINED_BYTES} bytes: weight, gradient, moments",
        ),
        Part(
            "activations",
            layer * config.num_cached_layers,
            f"{tokens:,} tokens x {config.num_cached_layers} layers x {layer // tokens:,} bytes",
        ),
        Part("logits", logits, f"{tokens:,} x {config.vocab_size:,} x 4 bytes, and two more"),
        _libraries(device),
    ]
    return Plan([part for part in parts if part.bytes], available)


def _libraries(device: Device) -> Part:
    what = "Python and torch" if device == "cpu" else "CUDA"
    return Part("libraries", RUNTIME_BYTES[device], what)


def _trained_parameters(config: ModelConfig, method: str) -> int:
    c, kv, layers = config.hidden_size, config.kv_heads * config.head_dim, config.num_layers
    if method == "full":
        return config.num_parameters
    if method == "lora":
        return layers * LORA_RANK * (3 * c + c + 2 * kv)
    if method == "ptuning":
        return layers * PREFIX_TOKENS * 2 * kv
    raise UsageError(f"unknown training method {method!r}", hint=f"one of {', '.join(METHODS)}")


def _context(config: ModelConfig, context: int | None) -> int:
    limit = config.max_position_embeddings
    if context is None:
        return min(DEFAULT_CONTEXT, limit)
    if not 0 < context <= limit:
        raise UsageError(f"{context:,} tokens are not possible: this model has {limit:,} positions")
    return context


def _check_degree(config: ModelConfig, num_devices: int) -> None:
    if config.num_attention_heads % num_devices:
        raise UsageError(
            f"{config.num_attention_heads} attention heads cannot be shared out to {num_devices} "
            "devices",
            hint="take a number that divides them",
        )
