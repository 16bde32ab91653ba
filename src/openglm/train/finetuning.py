"""`Finetuning`: a trained model, and conversations that it is to learn from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from openglm.adapters.files import save_lora, write_note
from openglm.adapters.lora import add_lora
from openglm.adapters.prefix import PrefixEncoder, save_prefix
from openglm.chat.formats import has_format
from openglm.checkpoints import load_source, open_checkpoint, save_checkpoint
from openglm.data.batches import Batch
from openglm.data.conversations import Conversation, read_conversations
from openglm.errors import ConfigError
from openglm.home import find_model
from openglm.log import logger
from openglm.model import Transformer
from openglm.scheme import Scheme, find_scheme
from openglm.tokenizers import require_tokenizer
from openglm.train.finetune_config import FinetuneConfig
from openglm.train.general import bits_per_byte
from openglm.train.loss import blank_loss
from openglm.train.supervised import Epochs, Supervised, supervise
from openglm.train.throughput import training_flops

FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Finetuning:
    """See `openglm.train.task.Task`. All data is read, laid out and checked here, at the start.

    Args:
        config: the run.
        device: of the network.

    Raises:
        ConfigError: the method cannot train such weights.
        DataError: lines that cannot be learned from; see `read_conversations` and `supervise`.
        CheckpointError: see `openglm.checkpoints.load_source`.

    Attributes:
        supervised: what is learned from.
        base: where the model came from.
    """

    def __init__(self, config: FinetuneConfig, device: torch.device | str = "cpu") -> None:
        self.base = find_model(config.model.name)
        self.tokenizer = require_tokenizer(self.base, self.base)
        source = open_checkpoint(self.base)
        folder = Path(config.data.folder)
        told = read_conversations(config.data.train, folder)
        if config.data.validation is None:
            kept = [one for one in told if not _is_held_out(one, config.data.holdout)]
            held_out = [one for one in told if _is_held_out(one, config.data.holdout)]
        else:
            kept, held_out = told, read_conversations(config.data.validation, folder)
        settings = self.tokenizer, source.config, config.train.sequence_length
        self.supervised = _told(supervise(kept, *settings), "to learn from")
        count = config.train.batch_size
        self.batch = Epochs(self.supervised.examples, count, config.train.seed)
        self._held_out = (
            Epochs(_told(supervise(held_out, *settings), "held out").examples, count, 0)
            if held_out
            else None
        )
        self.settings = self._with_steps(config)
        dtype, scheme = _dtype(config)
        self.model: Transformer = load_source(source, dtype, torch.device(device), scheme).model
        self.prefix_encoder: PrefixEncoder | None = None
        self._prepare(config)
        self.fingerprints = [_digest(kept), _digest(held_out)]

    def _with_steps(self, config: FinetuneConfig) -> FinetuneConfig:
        """The settings with the number of steps that the epochs take."""
        if config.train.steps:
            return config
        batches = self.batch.num_batches * config.train.epochs
        steps = max(1, round(batches / config.train.accumulation))
        return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))

    def _prepare(self, config: FinetuneConfig) -> None:
        """Chooses what is trained."""
        if config.method == "lora":
            add_lora(self.model, config.lora, config.train.seed)
            return
        if config.method == "ptuning":
            self.model.requires_grad_(False)
            encoder = PrefixEncoder(self.model.config, config.ptuning, config.train.seed)
            self.prefix_encoder = encoder.to(self.model.device)
            self.model.add_module("prefix_encoder", self.prefix_encoder)
            return
        if config.model.dtype != "float32":
            raise ConfigError(
                f"method={config.method!r} trains the weights themselves, in float32; "
                f"model.dtype={config.model.dtype!r} is for what is frozen",
                hint="leave model.dtype out, or take method = 'lora'",
            )
        self.model.requires_grad_(config.method == "full")
        if config.method == "freeze":
            layers = self.model.layers
            if config.freeze.layers > len(layers):
                raise ConfigError(
                    f"freeze.layers={config.freeze.layers}: this model has {len(layers)}"
                )
            for part in (*list(layers)[-config.freeze.layers :], self.model.final_norm):
                part.requires_grad_(True)

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """See `Task.loss`."""
        prefix = None if self.prefix_encoder is None else self.prefix_encoder()
        return blank_loss(self.model, batch, label_smoothing, prefix)

    def flops(self, batch: Batch) -> float:
        """See `Task.flops`; frozen weights have no gradients, a third of the work."""
        whole = training_flops(self.model.config, batch)
        return whole if self.settings.method == "full" else whole * 2 / 3

    def validation(self, index: int) -> Batch | None:
        """See `Task.validation`."""
        return None if self._held_out is None else self._held_out.in_order(index)

    def examine(self) -> dict[str, float]:
        """See `Task.examine`."""
        if not self.settings.train.examine:
            return {}
        if self.prefix_encoder is None:
            return bits_per_byte(self.model, self.tokenizer)
        self.prefix_encoder.eval()
        return bits_per_byte(self.model, self.tokenizer, self.prefix_encoder())

    def export(self, folder: Path, about: dict[str, int]) -> None:
        """Writes the adapter, or the whole model with its tokenizer."""
        if self.settings.method == "lora":
            save_lora(folder, self.model, self.settings.lora, self.base_name)
            return
        if self.prefix_encoder is not None:
            save_prefix(folder, self.prefix_encoder)
            write_note(folder, self.model, "prefix", self.base_name)
            return
        weights = {name: parameter.data for name, parameter in self.model.named_parameters()}
        config = self.model.config
        save_checkpoint(folder, config, weights, "openglm", tokenizer=self.tokenizer, about=about)

    @property
    def chats(self) -> bool:
        """Whether the model answers conversations."""
        return has_format(self.tokenizer)

    @cached_property
    def base_name(self) -> str:
        """By which the model is found again: its name, or where its folder is."""
        name = self.settings.model.name
        return str(Path(name).resolve()) if Path(name).is_dir() else name


def _dtype(config: FinetuneConfig) -> tuple[torch.dtype, Scheme | None]:
    """What the network computes in, and how its frozen weights are quantized."""
    name = config.model.dtype
    if name in FLOATS:
        return FLOATS[name], None
    scheme = find_scheme(name)
    if scheme is None:
        raise ConfigError(
            f"model.dtype={name!r} is not known", hint="float32, bfloat16, int8, int4, int4-g64 ..."
        )
    if scheme.head or scheme.embeddings:
        raise ConfigError(
            f"model.dtype={name!r}: embedding and head stay floats in training",
            hint="leave out what is behind the plus",
        )
    return torch.float32, scheme


def _is_held_out(conversation: Conversation, share: float) -> bool:
    digest = hashlib.sha256(_text(conversation).encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def _text(conversation: Conversation) -> str:
    return json.dumps([dataclasses.astuple(message) for message in conversation.messages])


def _digest(conversations: list[Conversation]) -> str:
    digest = hashlib.sha256()
    for one in conversations:
        digest.update(_text(one).encode())
    return digest.hexdigest()


def _told(found: Supervised, what: str) -> Supervised:
    """Says what was left out."""
    if found.too_long:
        lines = ", ".join(map(str, found.too_long[:10]))
        logger.warning(
            "%d conversations %s are longer than train.sequence_length and left out: lines %s%s",
            *(len(found.too_long), what, lines, " ..." * (len(found.too_long) > 10)),
        )
    return found
