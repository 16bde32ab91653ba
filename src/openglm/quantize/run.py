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
from openglm.errors import CheckpointError, UsageError
from openglm.log import logger
from openglm.quant.calibrate import CalibratedWeights
from openglm.quant.transform import QuantizedWeights
from openglm.quantize.passages import Text, read_text
from openglm.quantize.report import Report, measure, tokens_per_s
from openglm.scheme import GROUP_SIZES, Scheme
from openglm.tokenizers import Tokenizer

REPORT = "report.json"
EVALUATED = 64
"""Passages of the text that quality is measured on, at most."""
SAMPLES = 64
"""Passages of the text that calibrates, unless asked otherwise."""


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
        evaluate: a text to measure quality on; None = quality is not measured.
    """

    source: Path
    target: Path
    schemes: Sequence[Scheme]
    tokenizer: Tokenizer | None = None
    calibrate: Path | None = None
    samples: int = SAMPLES
    activation_order: bool = False
    evaluate: Path | None = None


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
        texts = _read_texts(job, opened)
        told("measuring the source")
        speed = tokens_per_s(job.source, opened.config, None)
        reports = []
        for scheme in job.schemes:
            folder = building / scheme.name
            told(f"{scheme.name}: quantizing")
            _write(folder, job, opened, scheme, texts["calibrate"])
            told(f"{scheme.name}: measuring")
            report = measure(job.source, folder, scheme, texts["evaluate"], speed)
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
    if job.tokenizer is None and (job.calibrate or job.evaluate):
        raise UsageError(
            f"{job.source} has no tokenizer, so no text can be read", hint="give --tokenizer"
        )


def _read_texts(job: Job, opened: Source) -> dict[str, Text | None]:
    wanted = {
        "calibrate": (job.calibrate, 0.5, job.samples),
        "evaluate": (job.evaluate, 0.0, EVALUATED),
    }
    return {
        name: read_text(path, job.tokenizer, opened.config, share, most)
        if path is not None and job.tokenizer is not None
        else None
        for name, (path, share, most) in wanted.items()
    }


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
