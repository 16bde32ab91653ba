"""The training loop: single process, any device, resumable bit for bit on the CPU.

Every step is a function of (weights, moments, step, seed): batches and dropout are drawn from
generators seeded by the step number, so a run that was killed and resumed walks the same path.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from openglm.log import logger
from openglm.train import checkpoint
from openglm.train.allocator import keep_freed_memory
from openglm.train.config import Precision
from openglm.train.metrics import MetricsWriter, plot_loss, read_metrics
from openglm.train.optimizer import build_optimizer
from openglm.train.record import check_same_run, write_record
from openglm.train.schedule import learning_rate
from openglm.train.task import Task, trained
from openglm.train.throughput import measure_peak_flops
from openglm.train.watchdog import Watchdog


@dataclass(frozen=True, slots=True)
class Report:
    """What a step tells the outside: `kind` is train, validation or general."""

    kind: str
    step: int
    steps: int
    values: dict[str, float]


class Trainer:
    """One run in one folder.

    Args:
        task: what is trained; the network and all batches are its affair.
        folder: where everything of the run goes; made if missing.
        device: where the network is.
        on_report: called with every report.
    """

    def __init__(
        self,
        task: Task,
        folder: Path,
        device: torch.device | str = "cpu",
        on_report: Callable[[Report], None] = lambda _: None,
    ) -> None:
        self.task = task
        self.settings = task.settings
        self.folder = folder
        self.on_report = on_report
        self.device = torch.device(device)
        keep_freed_memory()
        if self.settings.train.threads:
            torch.set_num_threads(self.settings.train.threads)
        self.autocast_dtype = _autocast_dtype(self.settings.train.precision, self.device)
        self.parameters = list(trained(task.model).values())
        self.optimizer = build_optimizer(task.model, self.settings.optimizer)
        self.step = 0
        self.tokens_seen = 0

    def resume(self) -> bool:
        """Continues from the latest checkpoint of the folder, if there is one."""
        found = checkpoint.checkpoints(self.folder / "checkpoints")
        if not found:
            return False
        check_same_run(self.folder, self.settings, self.task.fingerprints)
        state = checkpoint.restore(found[-1][1], self.task.model, self.optimizer)
        self.step, self.tokens_seen = state["step"], state["tokens_seen"]
        return True

    def run(self) -> None:
        """Trains to the end.

        Raises:
            TrainingStopped: the watchdog saw a loss that is not finite or is zero.
        """
        config = self.settings.train
        self.folder.mkdir(parents=True, exist_ok=True)
        write_record(self.folder, self.settings, self.device, self.task.fingerprints)
        metrics = MetricsWriter(self.folder, self.step + 1)
        self._examine(metrics)
        peak = measure_peak_flops(self.autocast_dtype or torch.float32, self.device)
        watchdog = Watchdog()
        window = _Window()
        try:
            while self.step < config.steps:
                values = self._train_step(watchdog, window)
                if _due(self.step, config.log_every, config.steps):
                    values |= window.close(peak)
                    self._report(metrics, "train", values)
                if _due(self.step, config.validate_every, config.steps):
                    before = time.perf_counter()
                    if (loss := self.validate()) is not None:
                        self._report(metrics, "validation", {"loss": loss})
                    window.start += time.perf_counter() - before  # not training time
                if _due(self.step, config.checkpoint_every, config.steps):
                    self.save()
            self._examine(metrics)
        finally:
            metrics.close()
            plot_loss(self.folder)

    def _examine(self, metrics: MetricsWriter) -> None:
        """Before the first step and behind the last, once each."""
        is_due = self.step in (0, self.settings.train.steps)
        done = {row["step"] for row in read_metrics(metrics.path) if row["kind"] == "general"}
        if is_due and self.step not in done and (found := self._known()):
            self._report(metrics, "general", found)

    def _known(self) -> dict[str, float]:
        with self._autocast():
            return self.task.examine()

    def save(self) -> None:
        """Writes a training checkpoint."""
        state = {"step": self.step, "tokens_seen": self.tokens_seen}
        checkpoint.save(
            self.folder / "checkpoints",
            self.task.model,
            self.optimizer,
            state,
            self.settings.train.keep_checkpoints,
        )

    def export(self) -> Path:
        """Writes the result as it will be used: RUN/model."""
        folder = self.folder / "model"
        shutil.rmtree(folder, ignore_errors=True)
        self.task.export(folder, {"tokens_seen": self.tokens_seen, "steps": self.step})
        return folder

    def validate(self) -> float | None:
        """Mean loss over fixed held-out batches, in nats per target token; None without any."""
        self.task.model.eval()
        total, count = 0.0, 0
        with torch.no_grad(), self._autocast():
            for index in range(self.settings.train.validation_batches):
                batch = self.task.validation(index)
                if batch is None:
                    break
                total += self.task.loss(batch, 0.0).item() * batch.num_targets
                count += batch.num_targets
        return total / count if count else None

    def _train_step(self, watchdog: Watchdog, window: _Window) -> dict[str, float]:
        config = self.settings
        accumulation = config.train.accumulation
        step = self.step + 1
        self.task.model.train()
        torch.manual_seed(config.train.seed * 1_000_003 + step)  # dropout
        loss = 0.0
        for micro in range(accumulation):
            batch = self.task.batch(self.step * accumulation + micro)
            with self._autocast():
                part = self.task.loss(batch, config.train.label_smoothing) / accumulation
            part.backward()  # type: ignore[no-untyped-call]
            loss += part.item()
            window.add_batch(batch.num_tokens, self.task.flops(batch))
            self.tokens_seen += batch.num_tokens
        rate = learning_rate(
            step, config.train.steps, config.optimizer.learning_rate, config.schedule
        )
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.optimizer.clip_norm)
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
        self.on_report(Report(kind, self.step, self.settings.train.steps, values))


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


def _autocast_dtype(wanted: Precision, device: torch.device) -> torch.dtype | None:
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
