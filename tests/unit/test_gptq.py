"""GPTQ: against rounding to nearest, and on inputs that say little."""

from __future__ import annotations

import pytest
import torch

from openglm.errors import DataError
from openglm.kernels.packing import Packing, dequantize
from openglm.quant.gptq import quantize_calibrated
from openglm.quant.groupwise import quantize_groups

PACKINGS = [
    Packing(bits=4, group_size=64),
    Packing(bits=4, group_size=128, symmetric=False),
    Packing(bits=8, group_size=32),
]


@pytest.fixture(scope="module")
def inputs():
    """500 inputs of 200 columns that go together, as activations do."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 200, generator=generator)
    noise = torch.randn(500, 200, generator=generator)
    return torch.randn(500, 40, generator=generator) @ mixed + 0.3 * noise


@pytest.fixture(scope="module")
def weight():
    return torch.randn(48, 200, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("activation_order", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_it_beats_rounding_to_nearest(packing, activation_order, inputs, weight):
    """Errors are spread over the wrong columns: the outputs are no nearer than without.

    On such inputs the paper's method takes the error to a third or less; 0.6 leaves room for luck.
    """
    plain = dequantize(quantize_groups(weight, packing), torch.float32)
    calibrated = quantize_calibrated(weight, inputs.T @ inputs, packing, activation_order)
    errors = [
        (inputs @ (found - weight).T).square().mean().item()
        for found in (plain, dequantize(calibrated, torch.float32))
    ]
    assert errors[1] < 0.6 * errors[0]


@pytest.mark.parametrize("packing", PACKINGS)
def test_independent_inputs_change_nothing(packing, weight):
    """Where no column can make up for another, the nearest integer is the best one."""
    calibrated = quantize_calibrated(weight, 7 * torch.eye(200), packing)
    plain = quantize_groups(weight, packing)
    assert torch.equal(calibrated.values, plain.values)
    assert torch.equal(calibrated.scale, plain.scale)


@pytest.mark.parametrize("activation_order", [False, True])
def test_columns_that_are_never_used(activation_order, inputs, weight):
    """Dead inputs and fewer passages than columns make the moments singular."""
    few = inputs[:5].clone()
    few[:, 10:90] = 0.0
    packed = quantize_calibrated(weight, few.T @ few, PACKINGS[0], activation_order)
    found = dequantize(packed, torch.float32)
    assert torch.isfinite(found).all()
    assert (few @ (found - weight).T).abs().max() < (few @ weight.T).abs().max()


def test_damaged_moments(weight):
    """NaN spreads into the weights unsaid."""
    with pytest.raises(DataError, match="not finite"):
        quantize_calibrated(weight, torch.full((200, 200), torch.nan), PACKINGS[0])
