"""`Pretraining`: blank infilling over text, on fresh weights or those of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.data.batches import Batch
from openglm.errors import ConfigError
from openglm.model import build, initialize
from openglm.tokenizers import open_tokenizer
from openglm.train.config import RunConfig
from openglm.train.corpus import TRAIN_STREAM, VALIDATION_STREAM, build_stream, prepare_corpus
from openglm.train.loss import blank_loss
from openglm.train.throughput import training_flops


class Pretraining:
    """See `openglm.train.task.Task`.

    Args:
        config: the run.
        cache: folder of token stores, shared by runs.
        device: of the network.
        on_prepare: called with the name of each source before it is tokenised.
    """

    def __init__(
        self,
        config: RunConfig,
        cache: Path,
        device: torch.device | str = "cpu",
        on_prepare: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.settings = config
        self.tokenizer = open_tokenizer(config.tokenizer.kind, Path(config.tokenizer.path))
        if self.tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids, "
                f"model.vocab_size is {config.model.vocab_size}"
            )
        corpus = prepare_corpus(config, self.tokenizer, cache, on_prepare)
        self.fingerprints = corpus.fingerprints
        self.batch = build_stream(config, self.tokenizer, corpus.train, TRAIN_STREAM)
        self._held_out = (
            build_stream(config, self.tokenizer, corpus.validation, VALIDATION_STREAM)
            if config.train.validate_every
            else None
        )
        self.model = build(config.model, device)
        self._set_initial_weights(device)

    def _set_initial_weights(self, device: torch.device | str) -> None:
        """Fresh weights, or those of `train.initial`; its dropout probabilities do not matter."""
        initial = self.settings.train.initial
        if initial is None:
            initialize(self.model, self.settings.train.seed)
            return
        loaded = load_checkpoint(Path(initial), torch.float32, device)
        sizes = [
            {k: v for k, v in config.to_dict().items() if not k.endswith("dropout")}
            for config in (loaded.config, self.settings.model)
        ]
        if sizes[0] != sizes[1]:
            differing = [key for key in sizes[0] if sizes[0][key] != sizes[1][key]]
            raise ConfigError(
                f"train.initial={initial} is another network: {', '.join(differing)} differ",
                hint="copy its values into [model]: glm info FOLDER --json",
            )
        self.model.load_state_dict(loaded.model.state_dict())

    def loss(self, batch: Batch, label_smoothing: float) -> Tensor:
        """See `Task.loss`."""
        return blank_loss(self.model, batch, label_smoothing)

    def flops(self, batch: Batch) -> float:
        """See `Task.flops`."""
        return training_flops(self.settings.model, batch)

    def validation(self, index: int) -> Batch | None:
        """See `Task.validation`."""
        return None if self._held_out is None else self._held_out(index)

    def examine(self) -> dict[str, float]:
        """See `Task.examine`: there is nothing that it knew before."""
        return {}

    def export(self, folder: Path, about: dict[str, int]) -> None:
        """Writes the model with its tokenizer as an openglm folder."""
        save_checkpoint(
            folder,
            self.settings.model,
            {name: parameter.data for name, parameter in self.model.named_parameters()},
            "openglm",
            tokenizer=self.tokenizer,
            about=about,
        )
