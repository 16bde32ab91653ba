"""What became of a model: bits per weight, size, quality on text, and speed, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openglm.benchmark import measure as measure_speed
from openglm.checkpoints import load_checkpoint, open_checkpoint
from openglm.compiled.transform import can_compile, compiled
from openglm.config import ModelConfig
from openglm.kernels.cpu import module
from openglm.memory import quantized_shapes
from openglm.planning import plan_inference
from openglm.process import available_bytes
from openglm.quantize.passages import Text
from openglm.quantize.quality import Quality, compare
from openglm.scheme import Scheme

PROMPT_TOKENS, NEW_TOKENS = 32, 16
"""Of the measurement of speed: decoding is what quantization speeds up."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `glm quantize` says of one folder.

    Args:
        scheme: name of how it is quantized.
        source_bytes: of the source's weights.
        weight_bytes: of the quantized weights.
        bits_per_weight: of all parameters together.
        bits_per_quantized_weight: of those that were quantized, scales included.
        quality: None if it was not measured.
        no_quality: why not; None if it was.
        text: name of the file that it was measured on.
        text_sha256: of that text.
        source_tokens_per_s: decoded by the source; None if it does not fit into memory.
        tokens_per_s: decoded by the quantized model, likewise.
    """

    scheme: str
    source_bytes: int
    weight_bytes: int
    bits_per_weight: float
    bits_per_quantized_weight: float
    quality: Quality | None
    no_quality: str | None
    text: str | None
    text_sha256: str | None
    source_tokens_per_s: float | None
    tokens_per_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        change = None if self.quality is None else self.quality.perplexity_change
        return asdict(self) | {"perplexity_change": change}


def measure(
    source: Path, folder: Path, scheme: Scheme, text: Text | str, source_speed: float | None
) -> Report:
    """Measures a quantized folder against its source; neither is loaded while the other is.

    Args:
        source: the folder of floats.
        folder: what was made of it.
        scheme: how.
        text: what quality is measured on, or why it is not.
        source_speed: of `tokens_per_s`.
    """
    plain, made = open_checkpoint(source), open_checkpoint(folder)
    config = plain.config
    count = sum(rows * columns for rows, columns in quantized_shapes(config, scheme))
    kept = {name for name in plain if plain.dtypes[name] == made.dtypes.get(name)}
    num_kept_bytes = sum(plain[name].nbytes for name in kept)
    source_bytes, weight_bytes = _size(plain), _size(made)
    read, why_not = (None, text) if isinstance(text, str) else (text, None)
    quality = None if read is None else compare(config, plain, made, scheme, read.passages)
    return Report(
        scheme.name,
        source_bytes,
        weight_bytes,
        8 * weight_bytes / config.num_parameters,
        8 * (weight_bytes - num_kept_bytes) / count,
        quality,
        why_not,
        None if read is None else read.name,
        None if read is None else read.sha256,
        source_speed,
        tokens_per_s(folder, config, scheme),
    )


def _size(weights: Mapping[str, Tensor]) -> int:
    return sum(tensor.nbytes for tensor in weights.values())


def tokens_per_s(folder: Path, config: ModelConfig, scheme: Scheme | None) -> float | None:
    """Decoding one sequence on this CPU; None if the model does not fit into memory."""
    context = min(PROMPT_TOKENS + NEW_TOKENS, config.max_position_embeddings)
    prompt = context - min(NEW_TOKENS, context // 2)
    is_compiled = module() is not None
    floats = "bfloat16" if is_compiled else "float32"
    plan = plan_inference(
        config,
        floats if scheme is None else scheme.name,
        context,
        available=available_bytes(),
        is_compiled=is_compiled,
    )
    if plan.fits is False:
        return None
    model = load_checkpoint(folder, None if is_compiled else torch.float32).model
    model = compiled(model) if can_compile(model) else model
    speed = measure_speed(model, prompt, context - prompt)
    return speed.tokens_per_s(1)
