"""Where the numbers of a run go: metrics.jsonl, TensorBoard, and a loss plot."""

from __future__ import annotations

import json
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from openglm.log import logger

METRICS_FILE = "metrics.jsonl"


class MetricsWriter:
    """Appends one JSON object per report; on resume, drops lines behind the resumed step.

    Args:
        folder: the run folder.
        first_step: reports of this step and later ones are about to be written (again).
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        self.path = folder / METRICS_FILE
        kept = [row for row in read_metrics(self.path) if row["step"] < first_step]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self.path.write_text(text, encoding="utf-8")
        self.board = _tensorboard(folder / "tensorboard", first_step)

    def write(self, row: dict[str, Any]) -> None:
        """Writes one report; `row` has "step" and "kind" (train or validation)."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.board is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "step":
                    self.board.add_scalar(f"{row['kind']}/{name}", value, row["step"])

    def close(self) -> None:
        """Flushes TensorBoard."""
        if self.board is not None:
            self.board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All complete lines of a metrics file; a line torn by a kill is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a torn line was dropped", path)
    return rows


def _tensorboard(folder: Path, first_step: int) -> Any:
    if find_spec("tensorboard") is None:
        logger.warning("no TensorBoard log: install it with `pip install '.[train]'`")
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=first_step if first_step > 1 else None)


def plot_loss(folder: Path) -> Path | None:
    """Draws `loss.png` from the metrics of a run; None (and a warning) without matplotlib."""
    if find_spec("matplotlib") is None:
        logger.warning("no loss plot: install matplotlib with `pip install '.[train]'`")
        return None
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib.figure import Figure

    rows = read_metrics(folder / METRICS_FILE)
    if not rows:
        return None
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for kind, style in (
        ("train", {"alpha": 0.35, "linewidth": 0.8}),
        ("validation", {"marker": "o"}),
    ):
        points = [(row["tokens_seen"] / 1e6, row["loss"]) for row in rows if row["kind"] == kind]
        if points:
            axes.plot(*zip(*points, strict=True), label=kind, **style)
    axes.set(xlabel="tokens seen (millions)", ylabel="loss (nats per target token)")
    axes.grid(alpha=0.3)
    axes.legend()
    path = folder / "loss.png"
    figure.savefig(path, dpi=120)
    return path
