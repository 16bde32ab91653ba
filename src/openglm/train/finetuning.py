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
from openglm.errors import ConfigError, DataError
from openglm.home import find_model
from openglm.log import logger
from openglm.model import Transformer
from openglm.scheme import Scheme, find_scheme
from openglm.tokenizers import Tokenizer, require_tokenizer
from openglm.train.finetune_config import FinetuneConfig
from openglm.train.general import bits_per_byte
from openglm.train.loss import blank_loss
from openglm.train.supervised import Epochs, Supervised, supervise
from openglm.train.throughput import training_flops

SAMPLED = 1024
"""Numbers of each tensor that tell a model from another."""
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
        self._held_out: Epochs | None = None
        if held_out:
            try:
                examples = _told(supervise(held_out, *settings), "held out").examples
                self._held_out = Epochs(examples, count, 0)
            except DataError as error:
                if config.data.validation is not None:
                    raise
                logger.warning("nothing is held out: %s", error)
        self.settings = self._with_steps(config)
        dtype, scheme = _dtype(config)
        loaded = load_source(source, dtype, torch.device(device), scheme)
        self.model: Transformer = loaded.model
        self.family = source.family
        own = _digest_of_weights(self.model), _digest_of_files(self.tokenizer)
        self.fingerprints = [_digest(kept), _digest(held_out), *own]
        self.prefix_encoder: PrefixEncoder | None = None
        self._check(config, loaded.scheme, source.scheme is not None)
        self._prepare(config)

    def _with_steps(self, config: FinetuneConfig) -> FinetuneConfig:
        """The settings with the number of steps that the epochs take."""
        if config.train.steps:
            return config
        batches = self.batch.num_batches * config.train.epochs
        steps = max(1, round(batches / config.train.accumulation))
        return dataclasses.replace(config, train=dataclasses.replace(config.train, steps=steps))

    def _check(self, config: FinetuneConfig, scheme: Scheme | None, is_stored: bool) -> None:
        """Whether the method can train such weights; `is_stored`: as integers, in the files."""
        if config.method in ("full", "freeze") and (scheme or config.model.dtype != "float32"):
            raise ConfigError(
                f"method={config.method!r} trains the weights themselves, in float32; "
                f"integers, and model.dtype={config.model.dtype!r}, are for what is frozen",
                hint="leave model.dtype out and take a model in floats, or method = 'lora'",
            )
        if scheme is not None and (scheme.head or scheme.embeddings):
            raise ConfigError(
                "embedding and head stay floats in training",
                hint="leave out what is behind the plus, or take the model in floats",
            )
        if config.method == "lora" and is_stored:
            raise ConfigError(
                f"{config.model.name} is stored in integers, into which no adapter can be merged",
                hint="name the model in floats, with model.dtype = 'int4' to train beside "
                "integers; or take method = 'ptuning'",
            )

    def _prepare(self, config: FinetuneConfig) -> None:
        """Chooses what is trained."""
        if config.method == "lora":
            add_lora(self.model, config.lora, config.train.seed, self.family)
            return
        if config.method == "ptuning":
            self.model.requires_grad_(False)
            encoder = PrefixEncoder(self.model.config, config.ptuning, config.train.seed)
            self.prefix_encoder = encoder.to(self.model.device)
            self.model.add_module("prefix_encoder", self.prefix_encoder)
            return
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
            save_lora(folder, self.model, self.settings.lora, self.base_name, self.family)
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


def _digest_of_weights(model: Transformer) -> str:
    """Of some numbers of every tensor: another model under the same name is another run."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)].cpu().contiguous()
        digest.update(name.encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest_of_files(tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256()
    for path in tokenizer.files().values():
        digest.update(path.read_bytes())
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
