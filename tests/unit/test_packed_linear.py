"""Products with packed quantized weights: the plain reference, and the choice of a kernel."""

from __future__ import annotations

import pytest
import torch

from helpers_packed import EPSILON, check_product, random_weight
from openglm.errors import KernelUnavailable
from openglm.kernels.gpu.available import missing
from openglm.kernels.packed_linear import linear, reference
from openglm.kernels.packing import Packing

FORM = Packing(bits=4, group_size=32, symmetric=False)


@pytest.mark.parametrize("dtype", list(EPSILON))
def test_reference_is_the_exact_product(dtype: torch.dtype) -> None:
    """The kernels would be held to a wrong specification."""
    packed, exact = random_weight(2000, 104, FORM)
    x, bias = torch.randn(2, 3, 104).to(dtype), torch.randn(2000).to(dtype)
    check_product(reference(x, packed, bias).flatten(0, 1), x.flatten(0, 1), exact, bias)


def test_unknown_and_missing_kernels_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that silently becomes another hides why a model is slow."""
    packed, _ = random_weight(16, 32, FORM)
    with pytest.raises(KernelUnavailable, match=r"did you mean 'triton'"):
        linear(torch.zeros(1, 32), packed, kernel="tritn")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delenv("OPENGLM_KERNELS", raising=False)
    with pytest.raises(KernelUnavailable, match=r"Triton (is not installed|has no kernels)"):
        linear(torch.zeros(1, 32), packed, kernel="triton")
    assert linear(torch.zeros(0, 32), packed).shape == (0, 16)


def test_the_reference_can_be_asked_for_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A doubt about a kernel could not be settled on a GPU: Triton would run all the same."""
    packed, _ = random_weight(16, 32, FORM)
    monkeypatch.setenv("OPENGLM_KERNELS", "reference")
    assert missing(torch.device("cuda")).startswith("OPENGLM_KERNELS=reference")
    with pytest.raises(KernelUnavailable, match="but OPENGLM_KERNELS=reference"):
        linear(torch.zeros(1, 32), packed, kernel="triton")
