"""LoRA as files that peft reads, and a note in every adapter of the model that it belongs to.

adapter_config.json         peft's settings
adapter_model.safetensors   base_model.model.OFFICIAL_NAME.lora_A.weight, ... lora_B.weight
openglm.json                name and fingerprint of the base model; peft does not look at it
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from openglm.adapters.lora import (
    LoraConfig,
    add_lora,
    chosen_sites,
    set_tensors,
    sites,
    tensors,
)
from openglm.checkpoints.maps import FAMILIES, Family
from openglm.errors import CheckpointError
from openglm.log import logger
from openglm.model import Transformer

SETTINGS, WEIGHTS, NOTE = "adapter_config.json", "adapter_model.safetensors", "openglm.json"
PREFIX = "base_model.model."
"""Of every name in peft's files."""
ADDED = "prefix_encoder."
"""What training puts into a network beside its own modules."""
REFUSED: dict[str, Any] = {
    "use_dora": False,
    "use_rslora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "use_qalora": False,
    "lora_bias": False,
    "target_parameters": None,
    "trainable_token_indices": None,
}
"""Variants of peft that are not LoRA as it is here, and the values without effect."""
HARMLESS_STARTS = (True, False, None, "gaussian")
"""Of `init_lora_weights`; others change the weights of the base as well."""


def save_lora(
    folder: Path, model: Transformer, config: LoraConfig, base: str, family: Family | None = None
) -> None:
    """Writes the adapter of a network.

    Args:
        folder: made if missing.
        model: adapted.
        config: of the adapter.
        base: name of the model that it belongs to.
        family: whose names are written; see `openglm.adapters.lora.sites`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = tensors(model, config.targets, family)
    save_file({PREFIX + name: each.contiguous() for name, each in found.items()}, folder / WEIGHTS)
    chosen = chosen_sites(model.config, config.targets, family)
    names = {site.name.rpartition(".")[2] for site in chosen}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted(names),
        "bias": "none",
        "inference_mode": True,
    }
    _write(folder / SETTINGS, settings)
    write_note(folder, model, "lora", base)


def write_note(folder: Path, model: Transformer, kind: str, base: str) -> None:
    """Notes which model an adapter belongs to.

    Args:
        folder: of the adapter.
        model: beside which it was trained; with or without it.
        kind: "lora" or "prefix".
        base: name of the model.
    """
    note = {"adapter": kind, "base": base, "base_fingerprints": fingerprints(model)}
    _write(folder / NOTE, note)


def load_lora(path: Path, model: Transformer) -> LoraConfig:
    """Puts an adapter into a network.

    Args:
        path: folder of our files, or peft's.
        model: without adapters; all of it is frozen.

    Returns:
        its settings.

    Raises:
        CheckpointError: files are missing or damaged, it was trained for another model, or a tensor
            is missing, unknown or of another shape.
    """
    settings = _read(path / SETTINGS)
    _check_settings(path, settings)
    check_base(path, model)
    try:
        config = LoraConfig(
            rank=settings["r"],
            alpha=float(settings["lora_alpha"]),
            dropout=float(settings.get("lora_dropout", 0.0)),
            targets=sorted(settings["target_modules"]),
        )
        stored = load_file(path / WEIGHTS)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the adapter {path} cannot be read: {error!r}") from error
    weights = {name.removeprefix(PREFIX): tensor.float() for name, tensor in stored.items()}
    ranks = {len(tensor) for name, tensor in weights.items() if name.endswith("lora_A.weight")}
    if ranks != {config.rank}:  # before anything of that size is made
        raise CheckpointError(
            f"the adapter {path} has r={config.rank!r}, and tensors of {sorted(ranks)}"
        )
    family = _family(model, config, weights)
    add_lora(model, config, 0, family)
    _check_tensors(path, tensors(model, config.targets, family), weights)
    set_tensors(model, config.targets, weights, family)
    return config


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    has_note = (path / SETTINGS).is_file() or (path / NOTE).is_file()
    return has_note and (path / WEIGHTS).is_file()


def is_prefix(path: Path) -> bool:
    """Whether an adapter is a prefix of P-Tuning v2, ours."""
    return (path / NOTE).is_file() and _read(path / NOTE).get("adapter") == "prefix"


def base_of(path: Path) -> str:
    """Name or folder of the model that an adapter belongs to.

    Raises:
        CheckpointError: it does not say so.
    """
    told = _read(path / NOTE) if (path / NOTE).is_file() else _read(path / SETTINGS)
    base = told.get("base", told.get("base_model_name_or_path"))
    if not isinstance(base, str) or not base:
        raise CheckpointError(
            f"the adapter {path} does not say which model it belongs to",
            hint="name the model, and give the folder as adapter=",
        )
    return base


def fingerprints(model: Transformer) -> list[str]:
    """Of the weights that quantization leaves alone: norms and biases, rounded to bfloat16.

    The second is of numbers that were float16 meanwhile. So an adapter that was trained beside
    integers, or in another dtype, fits the same model. Two models that differ in their matrices
    only, such as one and its merged adapter, are not told apart.
    """
    config = model.config
    sizes = [config.vocab_size, config.hidden_size, config.num_layers, config.num_attention_heads]
    sizes += [config.kv_heads, config.intermediate_size]
    digests = [hashlib.sha256(json.dumps(sizes).encode()) for _ in range(2)]
    for name, parameter in sorted(model.named_parameters()):
        is_own = parameter.dim() == 1 and not name.startswith(ADDED)
        if is_own and not name.endswith(("weight_scale", "weight_minimum")):
            plain = parameter.detach().cpu()
            for digest, numbers in zip(digests, (plain, plain.to(torch.float16)), strict=True):
                digest.update(name.replace(".base.", ".").encode())
                digest.update(numbers.to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return [digest.hexdigest() for digest in digests]


def _family(model: Transformer, config: LoraConfig, weights: dict[str, Tensor]) -> Family | None:
    """Whose names the targets are; None if they are nobody's, which is told later."""
    given = {name.partition(".lora_")[0] for name in weights}
    for every in (family for family in FAMILIES if family.fits(model.config)):
        known = {site.name for site in sites(model.config, every)[0]}
        if given <= known:
            return every
    return None


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    if settings.get("peft_type") != "LORA":
        raise CheckpointError(
            f"{path} is an adapter of the kind {settings.get('peft_type')!r}",
            hint="LORA is read here; prefixes of P-Tuning v2 are given as prefix=",
        )
    for key, harmless in REFUSED.items():
        if settings.get(key, harmless) not in (harmless, None):
            raise CheckpointError(f"{path}: {key}={settings[key]!r} is not supported")
    if (start := settings.get("init_lora_weights")) not in HARMLESS_STARTS:
        raise CheckpointError(f"{path}: init_lora_weights={start!r} changes the base, too")
    if settings.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias={settings['bias']!r} is not supported; only 'none' is")
    if not isinstance(settings.get("target_modules"), list):
        raise CheckpointError(
            f"{path}: target_modules={settings.get('target_modules')!r} is no list of names"
        )


def check_base(path: Path, model: Transformer) -> None:
    """Raises `CheckpointError` for an adapter that was trained beside other weights."""
    note = path / NOTE
    if not note.is_file():
        logger.warning(
            "%s does not say which model it was trained for; beside another it writes nonsense",
            path,
        )
        return
    told = _read(note)
    known = told.get("base_fingerprints")
    if not isinstance(known, list) or not set(map(str, known)) & set(fingerprints(model)):
        raise CheckpointError(
            f"the adapter {path} was trained for {told.get('base')!r}, and this model has other "
            "weights",
            hint="load the model that it was trained for",
        )


def _check_tensors(path: Path, wanted: dict[str, Tensor], given: dict[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    both = sorted(wanted.keys() & given.keys())
    wrong = [name for name in both if wanted[name].shape != given[name].shape]
    for what, names in (("missing", missing), ("unknown", unknown), ("of another shape", wrong)):
        if names:
            raise CheckpointError(
                f"the adapter {path} does not fit this model: {len(names)} tensors are {what}, "
                f"such as {names[0]}",
                hint="it was trained for another model",
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read: {error}",
            hint=f"an adapter is a folder with {SETTINGS} and {WEIGHTS}",
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object")
    return found


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
