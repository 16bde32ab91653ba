"""The recorded outputs of the official GLM code, and the checkpoints they were made with."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from torch import Tensor, from_numpy

import openglm
from helpers_models import GLM_GOLDENS

Golden = dict[str, Tensor]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Opens a recorded .npz file by name, as tensors."""

    @cache
    def read(name: str) -> Golden:
        with np.load(GLM_GOLDENS / f"{name}.npz") as arrays:
            return {key: from_numpy(arrays[key]) for key in arrays.files}

    return read


@pytest.fixture(scope="session")
def checkpoint() -> Callable[[str], openglm.LanguageModel]:
    """Loads one of the four checkpoint folders (the same weights in four layouts)."""

    @cache
    def load(name: str) -> openglm.LanguageModel:
        return openglm.load(GLM_GOLDENS / name, dtype="float32", device="cpu")

    return load


@pytest.fixture(scope="session")
def special_ids() -> dict[str, int]:
    """Command token ids of the recorded runs."""
    meta: dict[str, Any] = json.loads((GLM_GOLDENS / "meta.json").read_text(encoding="utf-8"))
    return dict(meta["special_token_ids"])
