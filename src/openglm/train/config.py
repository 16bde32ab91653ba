"""`RunConfig`: everything a pretraining run depends on."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from openglm.config import ModelConfig
from openglm.data.objectives import ObjectiveConfig
from openglm.data.sources import SourceConfig
from openglm.errors import ConfigError
from openglm.settings import override, parse, read_toml_with_base

Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer: its kind and its file or folder."""

    kind: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Sources of text.

    Args:
        sources: where the text comes from.
        folder: relative source paths are relative to it.
        holdout: share of the rows kept for validation.
        mid_sentence_start: probability that a cut document may start inside a sentence.
    """

    sources: list[SourceConfig]
    folder: str = "."
    holdout: float = 0.005
    mid_sentence_start: float = 0.0

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("data.sources is empty; name at least one source of text")
        if not 0.0 <= self.holdout < 1.0:
            raise ConfigError(f"data.holdout={self.holdout} must be in [0, 1)")
        if not 0.0 <= self.mid_sentence_start <= 1.0:
            raise ConfigError(f"data.mid_sentence_start={self.mid_sentence_start} is no share")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopConfig:
    """The loop.

    Args:
        steps: optimizer steps in all.
        batch_size: sequences per micro-batch.
        accumulation: micro-batches per step.
        sequence_length: tokens of each at most; in pretraining, of each before blanks are made.
        precision: bfloat16 runs matrix products in bf16 over float32 master weights; auto takes
            it where the device has bf16 arithmetic.
        seed: of weights, data and dropout.
        log_every, checkpoint_every, validate_every: in steps; 0 = never.
        validation_batches: batches of one validation.
        keep_checkpoints: how many of the latest are kept.
        label_smoothing: share of the loss spread over the vocabulary.
        threads: CPU threads; 0 = torch's choice. Resumed runs are bit-identical for equal threads.
    """

    steps: int
    batch_size: int = 16
    accumulation: int = 1
    sequence_length: int = 256
    precision: Precision = "auto"
    seed: int = 1234
    log_every: int = 10
    checkpoint_every: int = 500
    validate_every: int = 0
    validation_batches: int = 16
    keep_checkpoints: int = 2
    label_smoothing: float = 0.0
    threads: int = 0

    def __post_init__(self) -> None:
        self.check()

    def check(self, least_steps: int = 1) -> None:
        """Raises `ConfigError` for numbers that cannot be."""
        counts = ("batch_size", "accumulation", "keep_checkpoints", "validation_batches")
        for name, least in (("steps", least_steps), *((name, 1) for name in counts)):
            if getattr(self, name) < least:
                raise ConfigError(f"train.{name}={getattr(self, name)} must be at least {least}")
        for name in ("log_every", "checkpoint_every", "validate_every", "threads", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name}={getattr(self, name)} must not be negative")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(f"train.label_smoothing={self.label_smoothing} must be in [0, 1)")
        if self.sequence_length < 32:
            raise ConfigError(f"train.sequence_length={self.sequence_length} must be at least 32")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig(LoopConfig):
    """The loop of pretraining.

    Args:
        initial: checkpoint folder to start from (any layout); None = fresh weights.
    """

    initial: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW. Defaults: GLM-base and -large."""

    learning_rate: float = 4e-4
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} must be positive")
        for name in ("beta1", "beta2", "weight_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"optimizer.{name}={getattr(self, name)} must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleConfig:
    """Learning-rate schedule; see `openglm.train.schedule`.

    Args:
        kind: cosine (floors at decay_ratio) or linear (keeps falling behind the end).
        warmup: share of the steps.
        decay_ratio: last learning rate as a share of the largest.
    """

    kind: Literal["cosine", "linear"] = "cosine"
    warmup: float = 0.05
    decay_ratio: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup < 1.0 or not 0.0 <= self.decay_ratio <= 1.0:
            raise ConfigError("schedule.warmup must be in [0, 1), schedule.decay_ratio in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run, as `glm pretrain` reads it from TOML."""

    model: ModelConfig
    tokenizer: TokenizerConfig
    data: DataConfig
    train: TrainConfig
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.train.sequence_length > self.model.max_position_embeddings:
            raise ConfigError(
                f"train.sequence_length={self.train.sequence_length} is larger than "
                f"model.max_position_embeddings={self.model.max_position_embeddings}"
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        return dataclasses.asdict(self)


def load_run_config(path: Path, assignments: dict[str, str] | None = None) -> RunConfig:
    """Reads a TOML file; relative paths in it become relative to the file's folder.

    With `extends = "other.toml"` the file only holds what differs; both must be in one folder.

    Args:
        path: the configuration.
        assignments: dotted overrides, e.g. {"train.steps": "100"}.
    """
    values = override(read_toml_with_base(path), assignments or {})
    config = parse(RunConfig, values)
    folder = path.parent
    initial = config.train.initial
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, initial=initial and str(folder / initial)),
        tokenizer=dataclasses.replace(config.tokenizer, path=str(folder / config.tokenizer.path)),
        data=dataclasses.replace(config.data, folder=str(folder / config.data.folder)),
    )
