"""`openglm.load`: a name or folder to a `LanguageModel`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from openglm.adapters.files import base_of, check_base, is_adapter, is_prefix, load_lora
from openglm.adapters.lora import merge
from openglm.adapters.prefix import load_prefix
from openglm.checkpoints import (
    describe_checkpoint,
    load_random,
    load_source,
    open_checkpoint,
)
from openglm.compiled.transform import can_compile, compiled
from openglm.config import ModelConfig
from openglm.errors import UnknownTokenizerError, UsageError
from openglm.headroom import check_memory, dtype_name
from openglm.home import find_model
from openglm.kernels.cpu import module
from openglm.language_model import LanguageModel
from openglm.memory import parse_dtype_name
from openglm.model import Transformer
from openglm.quant.packed_rows import use_packed_rows
from openglm.registry import find_preset, preset
from openglm.scheme import Scheme
from openglm.tokenizers import find_tokenizer, require_tokenizer

ACTIVATIONS = ("auto", "float32", "int8")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load(
    name: str | Path = "mini",
    dtype: str = "auto",
    device: str = "auto",
    tokenizer: str | Path | None = None,
    description: dict[str, Any] | None = None,
    exact_rotary: bool = False,
    prefix: str | Path | None = None,
    adapter: str | Path | None = None,
    random_weights: bool = False,
    activations: str = "auto",
) -> LanguageModel:
    """Loads a model.

    Args:
        name: `mini`, a checkpoint folder (recognised by its content), or a downloaded model.
        dtype: float32, bfloat16, float16; auto = as stored. int8 and int4 quantize the blocks by
            the official scheme, int4-g64 and other names of a `Scheme` by groups. The
            compiled CPU kernels compute in float32 whatever the weights are; bfloat16 rounds
            activations too, which is faster where the processor has instructions for it. Plain
            torch (no kernels, or `OPENGLM_KERNELS=reference`) computes in float16 or bfloat16 if
            these are asked for; auto is float32 there.
        device: cpu, cuda, cuda:N; auto = a GPU if there is one.
        tokenizer: folder of the vocabulary, if it is not beside the weights.
        description: what a Megatron folder does not say, like {"num_attention_heads": 64}.
        exact_rotary: compute rotary angles in float32. GLM-130B, ChatGLM-6B, ChatGLM2 and CodeGeeX2
            were released, and trained, with half-precision angles; False does as they do.
        prefix: a P-Tuning v2 checkpoint (folder or file) that was trained for this model.
        adapter: folder of a LoRA adapter, ours or peft's, that was trained for this model and is
            merged into its float weights; or of a prefix of `glm finetune`. `name` may be such a
            folder itself: it says which model it belongs to.
        random_weights: draw weights instead of reading them; `name` may be any preset. For
            measuring speed and memory: such a model writes noise, and has no tokenizer.
        activations: how they meet integer weights in the compiled CPU kernels. float32: as they
            are; int8: rounded per token and group of columns, which is faster; auto: float32 with
            the official scheme, whose released code computes so, else int8.

    Raises:
        ConfigError: unknown name.
        CheckpointError: see `openglm.checkpoints.load_checkpoint` and `load_prefix`.
        TokenizerError: damaged vocabulary files, or those of another revision than the weights.
        UsageError: unknown dtype or device, or options that random weights cannot have.
        NotEnoughMemory: it would not fit, see `openglm.headroom`.
    """
    place = pick_device(device)
    kind, scheme = dtype_of_weights(dtype, place)
    if activations not in ACTIVATIONS:
        raise UsageError(
            f"unknown activations {activations!r}", hint=f"one of {', '.join(ACTIVATIONS)}"
        )
    if random_weights:
        if tokenizer or description or exact_rotary or prefix or adapter:
            raise UsageError("random_weights goes with name, dtype and device only")
        config, kind = _architecture(str(name)), kind or torch.bfloat16
        check_memory(str(name), config, dtype_name(kind, scheme), place)
        network = load_random(config, kind, place, scheme)
        network = _for_kernels(network, dtype, activations, scheme)
        return LanguageModel(network, None, f"{name} (random weights)")
    folder = find_model(str(name))
    if adapter is None and is_adapter(folder):
        folder, adapter = find_model(base_of(folder)), folder
    source = open_checkpoint(folder, description, exact_rotary)
    stays = dtype_name(kind or source.stored_dtype, source.scheme or scheme)
    check_memory(str(name), source.config, stays, place)
    loaded = load_source(source, kind, place, scheme)
    network = loaded.model
    if prefix is not None:
        network.prefix = load_prefix(Path(prefix), loaded.config)
    if adapter is not None:
        _add(Path(adapter), network)
    network = _for_kernels(network, dtype, activations, loaded.scheme)
    found, problem = None, None
    try:
        found = (
            find_tokenizer(folder)
            if tokenizer is None
            else require_tokenizer(Path(tokenizer), folder)
        )
    except UnknownTokenizerError as error:  # the numbers work without it; text methods raise it
        problem = error
    return LanguageModel(network, found, str(name), loaded.token_ids, problem)


def _add(adapter: Path, network: Transformer) -> None:
    """Puts an adapter of either kind into a network."""
    if is_prefix(adapter):
        check_base(adapter, network)
        network.prefix = load_prefix(adapter, network.config)
    else:
        load_lora(adapter, network)
        merge(network)


def _for_kernels(
    network: Transformer, dtype: str, activations: str, scheme: Scheme | None
) -> Transformer:
    """The network on the kernels of its device, as far as there are any; in place."""
    if activations != "auto" and (scheme is None or not can_compile(network)):
        what = "float weights" if scheme is None else "plain torch, or a GPU"
        raise UsageError(
            f"activations={activations!r} has no effect on {what}: it is for integer weights in "
            "the compiled CPU kernels",
            hint="leave it out; glm doctor says which kernels are used",
        )
    if network.device.type == "cuda":
        return use_packed_rows(network)
    if not can_compile(network):
        return network
    return compiled(network, "bfloat16" if dtype == "bfloat16" else activations)


def _architecture(name: str) -> ModelConfig:
    """Of a preset, or of a folder whose weights are not read."""
    known = find_preset(name)
    return preset(known).model if known else describe_checkpoint(find_model(name))[0]


def pick_device(name: str) -> torch.device:
    """The torch device of a name; `UsageError` if it is unknown or not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}", hint="cpu, cuda, cuda:0 ...") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device={name} is not supported", hint="cpu, cuda, cuda:0 ...")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device={name}, but torch sees {torch.cuda.device_count()} GPUs", hint="use cpu"
        )
    return device


def parse_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name of a floating-point type; `UsageError` for any other."""
    if name not in DTYPES:
        raise UsageError(f"unknown dtype {name!r}", hint=f"one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def dtype_of_weights(name: str, device: torch.device) -> tuple[torch.dtype | None, Scheme | None]:
    """What weights become: floats of a dtype, None as stored; and how they are quantized, if so.

    Plain torch on a CPU needs float32 to compute in.
    """
    scheme = None if name == "auto" else parse_dtype_name(name)
    if scheme is None and name != "auto":
        return parse_dtype(name), None
    in_plain_torch = device.type == "cpu" and module() is None
    return torch.float32 if in_plain_torch else None, scheme
