"""The training loop: single process, any device, resumable bit for bit on the CPU.

Every step is a function of (weights, moments, step, seed): batches and dropout are drawn from
generators seeded by the step number, so a run that was killed and resumed walks the same path.
"""

from __future__ import annotations

import json
import math
import platform
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import openglm
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.errors import ConfigError
from openglm.log import logger
from openglm.model import build, initialize
from openglm.model.transformer import Transformer
from openglm.tokenizers import open_tokenizer
from openglm.train import checkpoint
from openglm.train.allocator import keep_freed_memory
from openglm.train.config import RunConfig
from openglm.train.corpus import TRAIN_STREAM, VALIDATION_STREAM, build_stream, prepare_corpus
from openglm.train.loss import blank_loss
from openglm.train.metrics import MetricsWriter, plot_loss
from openglm.train.optimizer import build_optimizer
from openglm.train.schedule import learning_rate
from openglm.train.throughput import measure_peak_flops, training_flops
from openglm.train.watchdog import Watchdog

FREE_TO_CHANGE = {
    "train.log_every",
    "train.checkpoint_every",
    "train.validate_every",
    "train.validation_batches",
    "train.keep_checkpoints",
    "train.initial",  # only the start reads it
    "data.folder",  # content counts, not places: see Corpus.fingerprints
    "tokenizer.path",
}
"""Settings that may differ on resume; any other change would be another run."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a step tells the outside: `kind` is train or validation."""

    kind: str
    step: int
    steps: int
    values: dict[str, float]


class Trainer:
    """One run in one folder.

    Args:
        config: the run.
        folder: where everything of the run goes; made if missing.
        cache: folder of token stores, shared by runs.
        device: torch device.
        on_report: called with every report.
        on_prepare: called with the name of each source before it is tokenised.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        cache: Path,
        device: str = "cpu",
        on_report: Callable[[Report], None] = lambda _: None,
        on_prepare: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.on_report = on_report
        self.device = torch.device(device)
        keep_freed_memory()
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        self.autocast_dtype = _autocast_dtype(config, self.device)
        self.tokenizer = open_tokenizer(config.tokenizer.kind, Path(config.tokenizer.path))
        if self.tokenizer.vocab_size > config.model.vocab_size:
            raise ConfigError(
                f"the tokenizer has {self.tokenizer.vocab_size} ids, "
                f"model.vocab_size is {config.model.vocab_size}"
            )
        corpus = prepare_corpus(config, self.tokenizer, cache, on_prepare)
        self.fingerprints = corpus.fingerprints
        self.batches = build_stream(config, self.tokenizer, corpus.train, TRAIN_STREAM)
        self.validation = (
            build_stream(config, self.tokenizer, corpus.validation, VALIDATION_STREAM)
            if config.train.validate_every
            else None
        )
        self.model = build(config.model, self.device)
        self._set_initial_weights()
        self.optimizer = build_optimizer(self.model, config.optimizer)
        self.step = 0
        self.tokens_seen = 0

    def _set_initial_weights(self) -> None:
        """Fresh weights, or those of `train.initial`; its dropout probabilities do not matter."""
        initial = self.config.train.initial
        if initial is None:
            initialize(self.model, self.config.train.seed)
            return
        loaded = load_checkpoint(Path(initial), torch.float32, self.device)
        sizes = [
            {k: v for k, v in config.to_dict().items() if not k.endswith("dropout")}
            for config in (loaded.config, self.config.model)
        ]
        if sizes[0] != sizes[1]:
            differing = [key for key in sizes[0] if sizes[0][key] != sizes[1][key]]
            raise ConfigError(
                f"train.initial={initial} is another network: {', '.join(differing)} differ",
                hint="copy its values into [model]: glm info FOLDER --json",
            )
        self.model.load_state_dict(loaded.model.state_dict())

    def resume(self) -> bool:
        """Continues from the latest checkpoint of the folder, if there is one."""
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        if not found:
            return False
        _check_same_run(self.folder / "run.json", self.config, self.fingerprints)
        state = checkpoint.restore(found[-1][1], self.model, self.optimizer)
        self.step, self.tokens_seen = state["step"], state["tokens_seen"]
        return True

    def run(self) -> Transformer:
        """Trains to the end and returns the model.

        Raises:
            TrainingStopped: the watchdog saw a loss that is not finite or is zero.
        """
        config = self.config.train
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_run_record(self.folder / "run.json", self.config, self.device, self.fingerprints)
        metrics = MetricsWriter(self.folder, self.step + 1)
        peak = measure_peak_flops(self.autocast_dtype or torch.float32, self.device)
        watchdog = Watchdog()
        window = _Window()
        try:
            while self.step < config.steps:
                values = self._train_step(watchdog, window)
                if _due(self.step, config.log_every, config.steps):
                    values |= window.close(peak)
                    self._report(metrics, "train", values)
                if self.validation is not None and _due(
                    self.step, config.validate_every, config.steps
                ):
                    before = time.perf_counter()
                    self._report(metrics, "validation", {"loss": self.validate()})
                    window.start += time.perf_counter() - before  # not training time
                if _due(self.step, config.checkpoint_every, config.steps):
                    self.save()
        finally:
            metrics.close()
            plot_loss(self.folder)
        return self.model

    def save(self) -> None:
        """Writes a training checkpoint."""
        state = {"step": self.step, "tokens_seen": self.tokens_seen}
        checkpoint.save(
            self.folder / "checkpoints",
            self.model,
            self.optimizer,
            state,
            self.config.train.keep_checkpoints,
        )

    def export(self) -> Path:
        """Writes the model with its tokenizer as an openglm folder, RUN/model."""
        folder = self.folder / "model"
        shutil.rmtree(folder, ignore_errors=True)
        save_checkpoint(
            folder,
            self.config.model,
            {name: parameter.data for name, parameter in self.model.named_parameters()},
            "openglm",
            tokenizer=self.tokenizer,
            about={"tokens_seen": self.tokens_seen, "steps": self.step},
        )
        return folder

    def validate(self) -> float:
        """Mean loss over fixed held-out batches, in nats per target token."""
        assert self.validation is not None
        self.model.eval()
        total, count = 0.0, 0
        with torch.no_grad(), self._autocast():
            for index in range(self.config.train.validation_batches):
                batch = self.validation(index)
                total += blank_loss(self.model, batch).item() * batch.num_targets
                count += batch.num_targets
        return total / count

    def _train_step(self, watchdog: Watchdog, window: _Window) -> dict[str, float]:
        config = self.config
        accumulation = config.train.accumulation
        step = self.step + 1
        self.model.train()
        torch.manual_seed(config.train.seed * 1_000_003 + step)  # dropout
        loss = 0.0
        for micro in range(accumulation):
            batch = self.batches(self.step * accumulation + micro)
            with self._autocast():
                part = blank_loss(self.model, batch, config.train.label_smoothing) / accumulation
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            window.add_batch(batch.num_tokens, training_flops(config.model, batch))
            self.tokens_seen += batch.num_tokens
        rate = learning_rate(
            step, config.train.steps, config.optimizer.learning_rate, config.schedule
        )
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.optimizer.clip_norm)
        watchdog.check(step, loss, norm.item(), rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step = step
        window.add_step(loss)
        return {"grad_norm": norm.item(), "learning_rate": rate}

    def _autocast(self) -> torch.autocast:
        dtype = self.autocast_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    def _report(self, metrics: MetricsWriter, kind: str, values: dict[str, float]) -> None:
        row = {"kind": kind, "step": self.step, "tokens_seen": self.tokens_seen, **values}
        metrics.write(row)
        self.on_report(Report(kind, self.step, self.config.train.steps, values))


class _Window:
    """Sums of the steps since the last report."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.start = time.perf_counter()
        self.tokens, self.flops = 0, 0.0
        self.losses: list[float] = []

    def add_batch(self, tokens: int, flops: float) -> None:
        self.tokens += tokens
        self.flops += flops

    def add_step(self, loss: float) -> None:
        self.losses.append(loss)

    def close(self, peak: float) -> dict[str, float]:
        """Means of the window; a new one begins."""
        seconds = time.perf_counter() - self.start
        values = {
            "loss": math.fsum(self.losses) / len(self.losses),
            "tokens_per_s": self.tokens / seconds,
            "mfu": self.flops / seconds / peak,
        }
        self.reset()
        return values


def _due(step: int, every: int, steps: int) -> bool:
    return bool(every) and (step % every == 0 or step == steps)


def _autocast_dtype(config: RunConfig, device: torch.device) -> torch.dtype | None:
    wanted = config.train.precision
    if wanted == "auto":
        wanted = "bfloat16" if has_fast_bfloat16(device) else "float32"
        logger.info("train.precision = auto resolved to %s", wanted)
    return torch.bfloat16 if wanted == "bfloat16" else None


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    flags = torch.backends.cpu.get_cpu_capability()
    return "AVX512" in flags and bool(torch.cpu._is_avx512_bf16_supported())


def _write_run_record(
    path: Path, config: RunConfig, device: torch.device, fingerprints: list[str]
) -> None:
    record = {
        "config": config.to_dict(),
        "corpus": fingerprints,
        "openglm": openglm.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _git_commit(),
        "device": str(device),
        "threads": torch.get_num_threads(),
    }
    building = path.with_suffix(".building")
    building.write_text(json.dumps(record, indent=2), encoding="utf-8")
    building.replace(path)


def _git_commit() -> str | None:
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip()


def _check_same_run(path: Path, config: RunConfig, fingerprints: list[str]) -> None:
    """Refuses to resume with settings or text that would make it another run."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    hint = "resume with the same settings, or start in another folder with --run"
    if record["corpus"] != fingerprints:
        raise ConfigError(f"{path.parent} was started on other text or another tokenizer", hint)
    before = record["config"]
    now = json.loads(json.dumps(config.to_dict()))
    for table, values in now.items():
        for key, value in values.items():
            if f"{table}.{key}" in FREE_TO_CHANGE:
                continue
            if before.get(table, {}).get(key) != value:
                raise ConfigError(
                    f"{path.parent} was started with {table}.{key} = "
                    f"{before.get(table, {}).get(key)!r}, the configuration says {value!r}",
                    hint,
                )
