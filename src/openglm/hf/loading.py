"""`from_pretrained`: an official folder, or a model of the hub, through `openglm.checkpoints`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import GenerationConfig

from openglm.checkpoints import load_checkpoint
from openglm.errors import CheckpointError, UsageError, suggest
from openglm.hf.config import OfficialConfig
from openglm.loading import parse_dtype, pick_device

FILES = ["*.json", "*.safetensors", "pytorch_model*.bin", "*.model"]
"""What is fetched of a model on the hub: weights and vocabulary, no code."""
HUB = ("cache_dir", "force_download", "local_files_only", "token", "revision")
WITHOUT_EFFECT = {
    "trust_remote_code",  # no code from a folder is ever run
    "low_cpu_mem_usage",  # always so
    "empty_init",
    "use_safetensors",
    "weights_only",
    "attn_implementation",
    "code_revision",
    "_from_auto",
    "adapter_kwargs",
}
"""Arguments that old scripts and `AutoModel` pass, and that change no number."""
INSTEAD = {
    "load_in_8bit": "call .quantize(8) on the loaded model",
    "load_in_4bit": "call .quantize(4) on the loaded model",
    "quantization_config": "call .quantize(8) or .quantize(4) on the loaded model",
    "subfolder": "name the folder itself",
}


def load_pretrained(model_class: Any, name: Any, *args: Any, **options: Any) -> Any:
    """Loads a model.

    Args:
        model_class: a class of `openglm.hf.modeling`.
        name: a folder, or a name on the hub.
        *args: none.
        **options: `config` (must describe the same network), `dtype` or `torch_dtype` (a torch
            dtype, its name, or "auto"; None = as stored), `device_map` (one device: a name, a
            number, {"": device}, or "auto" for a GPU if there is one), and of the hub `cache_dir
            force_download local_files_only token revision`.

    Raises:
        UsageError: an argument that cannot be honoured.
        CheckpointError: see `openglm.checkpoints.load_checkpoint`; or the folder holds another
            network than `config`.
    """
    hub = {key: options.pop(key) for key in HUB if key in options}
    config = options.pop("config", None)
    dtype = _dtype(options.pop("dtype", None), options.pop("torch_dtype", None))
    device = _device(options.pop("device_map", None))
    _refuse(args, options)
    folder = _folder(str(name), hub)
    if config is None:
        config = model_class.config_class.from_pretrained(folder)
    _check_config(config, folder)
    loaded = load_checkpoint(folder, dtype, device)
    if config.architecture() != loaded.config:
        raise CheckpointError(
            f"{folder} holds another network than the given config describes",
            hint="load it without config=, or change only what does not shape the network",
        )
    config.dtype = dtype or loaded.stored_dtype
    config.quantization_bit = loaded.scheme.bits if loaded.scheme else 0
    model = model_class(config, loaded.model, loaded.token_ids).eval()
    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _refuse(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    given = {key for key, value in options.items() if value not in (None, False, "")}
    unknown = sorted(given - WITHOUT_EFFECT)
    if args:
        raise UsageError(f"from_pretrained takes one folder; {args!r} came behind it")
    if unknown:
        known = ["config", "dtype", "torch_dtype", "device_map", *HUB]
        raise UsageError(
            f"from_pretrained({unknown[0]}=...) is not supported by openglm.hf",
            hint=INSTEAD.get(unknown[0]) or suggest(unknown[0], known),
        )


def _check_config(config: OfficialConfig, folder: Path) -> None:
    if getattr(config, "pre_seq_len", None):
        raise UsageError(
            f"pre_seq_len={config.pre_seq_len}: P-Tuning v2 is not part of openglm.hf",
            hint=f"openglm.load({str(folder)!r}, prefix=CHECKPOINT) runs such a model",
        )


def _folder(name: str, hub: dict[str, Any]) -> Path:
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(name, allow_patterns=FILES, **hub))


def _dtype(*given: Any) -> torch.dtype | None:
    asked = [dtype for dtype in given if dtype not in (None, "auto")]
    if not asked:
        return None
    return asked[0] if isinstance(asked[0], torch.dtype) else parse_dtype(str(asked[0]))


def _device(device_map: Any) -> torch.device:
    if isinstance(device_map, dict) and len(set(device_map.values())) == 1:
        (device_map,) = set(device_map.values())
    if isinstance(device_map, dict):
        raise UsageError(
            f"device_map={device_map!r} spreads the model over devices, which is not supported",
            hint='name one, like device_map="cuda:0"',
        )
    if isinstance(device_map, int):
        device_map = f"cuda:{device_map}"
    return pick_device("cpu" if device_map is None else str(device_map))
