"""`FinetuneConfig`: everything a fine-tuning run depends on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from openglm.adapters.lora import LoraConfig
from openglm.adapters.prefix import PrefixConfig
from openglm.data.conversations import ConversationsConfig
from openglm.errors import ConfigError
from openglm.settings import override, parse, read_toml_with_base
from openglm.train.config import LoopConfig, OptimizerConfig, ScheduleConfig

Method = Literal["full", "freeze", "lora", "ptuning"]
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates of a method: what is taken if none is given, and what makes sense.

    Args:
        usual: the official recipes' (full: ChatGLM-6B's DeepSpeed script; LoRA: ChatGLM3's;
            P-Tuning v2: ChatGLM-6B's).
        least: below it nothing is learned in any time.
        most: above it runs end in a loss of nothing, or not finite.
    """

    usual: float
    least: float
    most: float


RATES: Mapping[Method, Rates] = {
    "full": Rates(1e-4, 1e-7, 2e-3),
    "freeze": Rates(1e-4, 1e-7, 5e-3),
    "lora": Rates(1e-3, 1e-6, 2e-2),
    "ptuning": Rates(2e-2, 1e-5, 1e-1),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseConfig:
    """The model to begin with.

    Args:
        name: see `openglm.load`; a folder is relative to that of the configuration.
        dtype: of what is frozen: float32, bfloat16, or a quantized one like int4-g32. What is
            trained is float32.
    """

    name: str
    dtype: str = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeConfig:
    """The method "freeze": only the last blocks, and the final norm, are trained.

    Args:
        layers: how many.
    """

    layers: int = 2

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ConfigError(f"freeze.layers={self.layers} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneData:
    """Conversations to learn from.

    Args:
        train: the file.
        validation: another file, whose loss is told; None = a share of the first one.
        holdout: that share, by the content of the lines.
        folder: relative paths are relative to it.
    """

    train: ConversationsConfig
    validation: ConversationsConfig | None = None
    holdout: float = 0.05
    folder: str = "."

    def __post_init__(self) -> None:
        if not 0.0 <= self.holdout < 1.0:
            raise ConfigError(f"data.holdout={self.holdout} must be in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneLoop(LoopConfig):
    """The loop of fine-tuning.

    Args:
        steps: optimizer steps in all; 0 = as many as `epochs` take.
        epochs: how often each example is seen, if `steps` is 0.
        examine: whether general texts are predicted before and behind, to tell what was lost.
    """

    steps: int = 0
    epochs: float = 3.0
    batch_size: int = 8
    sequence_length: int = 512
    validate_every: int = 100
    checkpoint_every: int = 100
    examine: bool = True

    def __post_init__(self) -> None:
        if self.epochs <= 0:
            raise ConfigError(f"train.epochs={self.epochs} must be above 0")
        LoopConfig.check(self, least_steps=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneConfig:
    """A whole run, as `glm finetune` reads it from TOML."""

    model: BaseConfig
    data: FinetuneData
    method: Method = "lora"
    train: FinetuneLoop = field(default_factory=FinetuneLoop)
    lora: LoraConfig = field(default_factory=LoraConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    ptuning: PrefixConfig = field(default_factory=PrefixConfig)
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        rates, rate = RATES[self.method], self.optimizer.learning_rate
        if not rates.least <= rate <= rates.most:
            raise ConfigError(
                f"optimizer.learning_rate={rate:g} is out of what makes sense for "
                f"method={self.method!r}: {rates.least:g} to {rates.most:g}",
                hint=f"{rates.usual:g} is usual; the 2e-2 of old recipes is for P-Tuning prefixes",
            )

    def to_dict(self) -> dict[str, Any]:
        """All settings as plain JSON values."""
        return dataclasses.asdict(self)


def load_finetune_config(
    path: Path, assignments: Mapping[str, str] | None = None
) -> FinetuneConfig:
    """Reads a TOML file; relative paths in it become relative to the file's folder.

    Args:
        path: the configuration; see `openglm.train.config.load_run_config`.
        assignments: overrides by dotted name, e.g. {"train.steps": "100", "method": "full"}.

    Raises:
        ConfigError: an unknown or missing key, or a value that cannot be.
    """
    values = override(read_toml_with_base(path), dict(assignments or {}))
    method = values.get("method", "lora")
    known: Method = next(
        (one for one in METHODS if one == method), "lora"
    )  # `parse` refuses others
    usual = {"learning_rate": RATES[known].usual, "weight_decay": 0.0}
    given = values.get("optimizer", {})
    values["optimizer"] = usual | given if isinstance(given, dict) else given
    config = parse(FinetuneConfig, values)
    folder, name = path.parent, config.model.name
    if (folder / name).is_dir():
        name = str(folder / name)
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, name=name),
        data=dataclasses.replace(config.data, folder=str(folder / config.data.folder)),
    )
