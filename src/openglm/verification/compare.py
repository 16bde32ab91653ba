"""Reading a golden, and comparing all that can be reproduced from it."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openglm.errors import VerificationError
from openglm.language_model import LanguageModel
from openglm.verification.family import FamilyRecording
from openglm.verification.glm import VARIANTS, GLMRecording


@dataclass(frozen=True, slots=True)
class Comparison:
    """One recorded array against ours."""

    golden: str
    array: str
    max_abs_difference: float
    passed: bool


def compare_golden(model: LanguageModel, path: Path, atol: float) -> list[Comparison]:
    """Compares everything comparable in one golden.

    Args:
        model: in float32.
        path: the .npz.
        atol: largest absolute difference that passes; token ids must be equal.

    Raises:
        VerificationError: the file is missing, damaged, or holds nothing to compare.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise VerificationError(f"{path} cannot be read as .npz: {error}") from error
    try:
        pairs = list(_pairs(model, path, arrays))
    except KeyError as error:
        raise VerificationError(f"{path} lacks the array or id {error}") from error
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise VerificationError(
            f"{path} has an array of a kind or shape that does not fit the others: {error}"
        ) from error
    if not pairs:
        raise VerificationError(
            f"{path} holds no recorded output that this model can be compared with",
            hint=f"it has: {', '.join(arrays)}",
        )
    return [_compare(path, name, ours, recorded, atol) for name, ours, recorded in pairs]


def _compare(
    path: Path, name: str, ours: NDArray[Any], recorded: NDArray[Any], atol: float
) -> Comparison:
    if ours.shape != recorded.shape:
        raise VerificationError(
            f"{path}: {name} is recorded as {recorded.shape}, the model gives {ours.shape}"
        )
    wide = np.asarray(ours, np.float64) - np.asarray(recorded, np.float64)
    difference = float(np.abs(wide).max(initial=0.0))
    exact = np.issubdtype(recorded.dtype, np.integer)
    return Comparison(path.name, name, difference, difference <= (0.0 if exact else atol))


def _pairs(
    model: LanguageModel, path: Path, arrays: dict[str, NDArray[Any]]
) -> Iterator[tuple[str, NDArray[Any], NDArray[Any]]]:
    """(name, ours, recorded) for all that can be compared."""
    if model.config.position == "learned_2d" and model.config.activation in VARIANTS:
        yield from GLMRecording(model, path, arrays).pairs()
    else:
        yield from FamilyRecording(model, arrays).pairs()
