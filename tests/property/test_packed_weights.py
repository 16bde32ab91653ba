"""Packed weights: layout, grids, and the products that kernels are compared with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from openglm.kernels.packed_linear import (
    embedding,
    linear,
    quantize_activations,
    reference_integer,
)
from openglm.kernels.packing import (
    Packing,
    dequantize,
    pack,
    pack_scale,
    unpack,
    unpack_scale,
)
from openglm.quant.groupwise import quantize_groups

PACKINGS = [
    Packing(bits=bits, group_size=size, symmetric=symmetric)
    for bits in (4, 8)
    for size in (32, 64, 128)
    for symmetric in (True, False)
]
ROWWISE = [Packing(bits=bits) for bits in (4, 8)]
SIZES = st.tuples(st.integers(1, 50), st.integers(1, 300))


def seeded(*shape: int, seed: int = 0, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * spread


@given(st.sampled_from(PACKINGS + ROWWISE), SIZES, st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_packing_is_invertible(packing, size, seed):
    """A weight comes back changed or moved, or files and memory have other shapes than planned."""
    generator = torch.Generator().manual_seed(seed)
    integers = torch.randint(0, 1 << packing.bits, size, generator=generator, dtype=torch.uint8)
    packed = pack(integers, packing)
    assert packed.shape == packing.shapes(*size)["weight"]
    assert torch.equal(unpack(packed, packing)[: size[0], : size[1]], integers)
    groups = packing.padded(*size)[1] // packing.columns_at_once if packing.group_size else 1
    scale = torch.rand(size[0], groups, generator=generator)
    stored = pack_scale(scale, packing)
    assert stored.shape == packing.shapes(*size)["weight_scale"]
    assert torch.equal(unpack_scale(stored)[: size[0]], scale)


@given(st.sampled_from(PACKINGS), SIZES, st.integers(0, 99), st.sampled_from([1e-3, 1.0, 100.0]))
@settings(max_examples=60, deadline=None)
def test_weights_are_rounded_to_the_nearest(packing, size, seed, spread):
    """An integer is not the nearest of its grid, or the search for a range makes things worse.

    The whole range, without any search, has steps of (largest - smallest) / (2^bits - 1), or for
    symmetric grids largest / 2^(bits - 1) and an error of up to a whole step at the end that the
    integers do not reach. Squared errors of a group can only be smaller than that; float16 scales
    add 2^-10 of the weight. The last group is filled up with copies of its last column.
    """
    weight = seeded(*size, seed=seed, spread=spread)
    packed = quantize_groups(weight, packing)
    found = dequantize(packed, torch.float32)
    assert found.shape == weight.shape
    for start in range(0, size[1], packing.group_size):
        group = weight[:, start : start + packing.group_size]
        error = (found[:, start : start + packing.group_size] - group).square().sum(dim=1).sqrt()
        low, high = group.amin(dim=1), group.amax(dim=1)
        largest = torch.maximum(high, -low)
        wide = largest / (1 << (packing.bits - 1)) * 2 if packing.symmetric else high - low
        step = wide / 2 if packing.symmetric else wide / ((1 << packing.bits) - 1) / 2
        bound = (step + largest * 2**-9) * packing.group_size**0.5
        assert (error <= bound).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_numbers_of_a_grid_stay(packing):
    """Weights that are representable come back changed."""
    steps = (1 << packing.bits) - 1
    integers = torch.arange(256).remainder(steps + 1).repeat(5, 1)  # both ends in every group
    integers = integers if packing.bits == 4 else torch.randint(0, 256, (5, 256))
    integers[:, :: packing.group_size] = 0
    integers[:, 1 :: packing.group_size] = steps
    zero = packing.zero if packing.symmetric else 0
    weight = (integers - zero) * 0.25 - (0 if packing.symmetric else 3.0)
    packed = quantize_groups(weight, packing)
    assert torch.equal(dequantize(packed, torch.float32), weight)


def test_zeros_stay_zeros():
    """A group of zeros, whose scale is 0, becomes NaN."""
    for packing in PACKINGS:
        packed = quantize_groups(torch.zeros(3, 40), packing)
        assert torch.equal(dequantize(packed, torch.float32), torch.zeros(3, 40))


@pytest.mark.parametrize("packing", PACKINGS)
def test_products_and_rows(packing):
    """A layer or an embedding over a packed weight is not that of the weight it stands for."""
    packed = quantize_groups(seeded(1100, 200), packing)  # more rows than are done at once
    weight = dequantize(packed, torch.float32)
    x, bias = seeded(2, 3, 200, seed=1), seeded(1100, seed=2)
    # The same products, of other pieces of the matrix: float32 sums of 200 in another order.
    assert_close(linear(x, packed, bias), x @ weight.T + bias, atol=1e-4, rtol=1e-5)
    ids = torch.tensor([[0, 15, 16], [1099, 7, 7]])
    assert torch.equal(embedding(ids, packed, torch.float32), weight[ids])


@pytest.mark.parametrize("packing", PACKINGS)
def test_integer_product_spelled_out(packing):
    """Integer kernels are compared with something else than their specification."""
    packed = quantize_groups(seeded(5, 150), packing)
    x = seeded(2, 150, seed=1)
    x[0, : packing.group_size] = 0.0
    expected = torch.zeros(2, 5, dtype=torch.float64)
    weight = dequantize(packed, torch.float64)
    for start in range(0, 150, packing.group_size):
        part = slice(start, start + packing.group_size)
        for token in range(2):
            step = x[token, part].abs().max().item() / 127
            rounded = torch.round(x[token, part] / step) if step else torch.zeros_like(x[0, part])
            expected[token] += weight[:, part] @ (rounded.double() * step)
    # The same numbers, added in float32.
    assert_close(reference_integer(x, packed).double(), expected, atol=1e-4, rtol=1e-4)


def test_activations_reach_both_ends():
    """A step that is too small wraps the largest activation around."""
    quantized, step = quantize_activations(torch.tensor([[3.0, -1.5, 0.0], [0.0, 0.0, 0.0]]), 32)
    assert quantized[0, 0, :3].tolist() == [127, -64, 0]  # 63.5 to even
    assert quantized[1].abs().sum() == 0
    assert_close(step[:, 0], torch.tensor([3.0 / 127, 0.0]))
