"""Quantizing a checkpoint: read as a stream, written as one, then measured.

Everything is written into a folder beside the target, which gets its name when all is done.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from openglm.checkpoints import Source, open_checkpoint, save_checkpoint
from openglm.config import ModelConfig
from openglm.errors import CheckpointError, UsageError
from openglm.log import logger
from openglm.process import available_bytes
from openglm.quant.calibrate import CalibratedWeights
from openglm.quant.transform import QuantizedWeights
from openglm.quantize.passages import HELD_OUT, Text, read_text
from openglm.quantize.quality import compared_bytes
from openglm.quantize.report import Report, measure, tokens_per_s
from openglm.scheme import GROUP_SIZES, Scheme
from openglm.tokenizers import Tokenizer

REPORT = "report.json"
EVALUATED = 64
"""Passages of the text that quality is measured on, at most."""
SAMPLES = 64
"""Passages of the text that calibrates, unless asked otherwise."""
WORK, FEWEST = 2.5e12, 256
"""Parameters times tokens that quality is measured with unless a text is given, some minutes on two
cores (6.2 B parameters: 403 tokens), and the fewest tokens that say anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be quantized, and how.

    Args:
        source: a checkpoint folder of floats.
        target: a new folder; with several schemes it gets a folder for each, of its name.
        schemes: at least one.
        tokenizer: of the model; None = texts cannot be read.
        calibrate: a text to round by GPTQ on; None = round to nearest.
        samples: passages of it, at most.
        activation_order: of GPTQ.
        evaluate: a text to measure quality on; the one that comes with openglm is used as far as
            time and memory allow. None = quality is not measured.
    """

    source: Path
    target: Path
    schemes: Sequence[Scheme]
    tokenizer: Tokenizer | None = None
    calibrate: Path | None = None
    samples: int = SAMPLES
    activation_order: bool = False
    evaluate: Path | None = HELD_OUT


def quantize(job: Job, told: Callable[[str], None] = logger.info) -> list[Report]:
    """Writes the quantized folders, each with its `report.json`.

    Args:
        job: what is asked for.
        told: called with what is done next.

    Raises:
        UsageError: a text without a tokenizer, or calibration of the official scheme.
        CheckpointError: see `open_checkpoint` and `save_checkpoint`; or the source is quantized.
        DataError: see `read_text`.
    """
    opened = open_checkpoint(job.source)
    _check(job, opened)
    if os.path.lexists(job.target):
        raise CheckpointError(f"{job.target} exists already", hint="name a new folder")
    job.target.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=job.target.parent, prefix=f".{job.target.name}-"))
    try:
        calibrating, measured = _calibrating(job, opened.config), _measured(job, opened.config)
        told("measuring the source")
        speed = tokens_per_s(job.source, opened.config, None)
        reports = []
        for scheme in job.schemes:
            folder = building / scheme.name
            told(f"{scheme.name}: quantizing")
            _write(folder, job, opened, scheme, calibrating)
            told(f"{scheme.name}: measuring")
            report = measure(job.source, folder, scheme, measured, speed)
            text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False)
            (folder / REPORT).write_text(text + "\n", encoding="utf-8")
            reports.append(report)
        if len(job.schemes) == 1:
            os.rename(building / job.schemes[0].name, job.target)
        else:
            building.chmod((building / job.schemes[0].name).stat().st_mode)
            os.rename(building, job.target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return reports


def _check(job: Job, opened: Source) -> None:
    if opened.scheme is not None:
        raise CheckpointError(
            f"{job.source} is quantized already, {opened.scheme.name}",
            hint="quantize the float weights that it was made from",
        )
    if len({scheme.name for scheme in job.schemes}) < len(job.schemes):
        raise UsageError("the same bits are asked for twice", hint="name each width once")
    if job.calibrate is not None and any(scheme.is_official for scheme in job.schemes):
        raise UsageError(
            "the official scheme (a scale per row) rounds to nearest",
            hint=f"calibrate with groups of {', '.join(map(str, GROUP_SIZES))} columns",
        )
    if job.activation_order and job.calibrate is None:
        raise UsageError("an activation order needs a calibration text", hint="give one")
    if job.tokenizer is None and (job.calibrate or job.evaluate not in (None, HELD_OUT)):
        raise UsageError(
            f"{job.source} has no tokenizer, so no text can be read", hint="give --tokenizer"
        )


def _calibrating(job: Job, config: ModelConfig) -> Text | None:
    if job.calibrate is None or job.tokenizer is None:
        return None
    return read_text(job.calibrate, job.tokenizer, config, 0.5, job.samples)


def _measured(job: Job, config: ModelConfig) -> Text | str:
    """What quality is measured on, or why it is not: nobody asked for the text that comes along."""
    if job.evaluate is None:
        return "not asked for"
    if job.tokenizer is None:
        return "there is no tokenizer to read a text with"
    most = None
    if job.evaluate == HELD_OUT:
        free, needed = available_bytes(), compared_bytes(config)
        if free is not None and needed > free:
            return f"it takes {needed / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        most = max(FEWEST, int(WORK / config.num_parameters))
    return read_text(job.evaluate, job.tokenizer, config, 0.0, EVALUATED, most)


def _write(folder: Path, job: Job, opened: Source, scheme: Scheme, text: Text | None) -> None:
    weights: Mapping[str, Tensor] = QuantizedWeights(opened, opened.config, scheme)
    made_by: dict[str, Any] = {"method": "nearest"}
    if text is not None:
        passages = [passage.inputs for passage in text.passages]
        order = job.activation_order
        weights = CalibratedWeights(opened, opened.config, scheme, passages, order)
        made_by = {
            "method": "gptq",
            "activation_order": order,
            "passages": len(passages),
            "text_sha256": text.sha256,
        }
    save_checkpoint(
        folder,
        opened.config,
        weights,
        "openglm",
        tokenizer=job.tokenizer,
        about=opened.metadata,
        token_ids=opened.token_ids,
        made_by=made_by,
    )
