"""Compiled CPU kernels against plain torch, for every instruction set that this machine has."""

from __future__ import annotations

import itertools
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.testing import assert_close

from openglm.kernels import cpu
from openglm.kernels.cpu.product import Product
from openglm.kernels.packed_linear import reference_integer
from openglm.kernels.packing import (
    PackedFloats,
    PackedWeight,
    Packing,
    dequantize,
    pack,
    pack_floats,
    rows_of,
)
from openglm.nn.rotary import Rotation, rotate_half_split, rotate_interleaved

native = cpu.module()
pytestmark = pytest.mark.skipif(native is None, reason=str(cpu.why_not()))
VARIANTS = [] if native is None else native.variants()
PACKINGS = [
    Packing(bits=bits, group_size=size, symmetric=symmetric)
    for bits, size, symmetric in itertools.product((4, 8), (0, 32, 64, 128), (True, False))
    if size or symmetric
]
ROWS = (1, 2, 3, 5, 7, 16, 33)  # tiles of 6, 4, 2 and 1 rows, and several of them
ROUNDING = (
    1e-6  # of the terms' sum without signs: some hundred roundings of 6e-8, mostly cancelling
)


@pytest.fixture(params=VARIANTS, autouse=True)
def variant(request):
    before = native.variant()
    native.use(request.param)
    yield request.param
    native.use(before)


def quantized(out_features, in_features, packing, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (out_features, in_features)
    integers = torch.randint(0, 2**packing.bits, shape, dtype=torch.uint8, generator=generator)
    sizes = packing.shapes(*shape)["weight_scale"]
    scale = (torch.rand(sizes, generator=generator) + 0.5) / 2**packing.bits
    minimum = None if packing.symmetric else (torch.rand(sizes, generator=generator) - 0.5).half()
    scale = scale.half() if packing.group_size else scale
    return PackedWeight(packing, *shape, pack(integers, packing), scale, minimum)


def assert_near(found, expected, x, weight):
    """Equal up to the rounding of sums; terms of asymmetric weights are up to 1 larger."""
    terms = x.abs().double() @ (weight.abs().double() + 1).T + expected.abs()
    assert ((found - expected).abs() <= ROUNDING * terms).all()


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), [(16, 128), (83, 200), (31, 1)])
def test_integers(packing, out_features, in_features):
    """A nibble, a scale, a minimum or a tail is read wrongly."""
    weight = quantized(out_features, in_features, packing)
    bias = torch.randn(out_features)
    for rows in ROWS:
        x = torch.randn(rows, in_features) * torch.logspace(-2, 2, rows)[:, None]
        floats = dequantize(weight, torch.float64)
        exact = x.double() @ floats.T + bias
        assert_near(Product([(weight, bias)], exact=True)(x), exact, x, floats)
        rounded = reference_integer(x, weight)
        assert_near(Product([(weight, None)], exact=False)(x), rounded, x, floats)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_no_number_stays_none(bits, value):
    """An overflow vanishes when activations become integers, and is answered with a token."""
    weight = quantized(16, 128, Packing(bits=bits, group_size=32))
    x = torch.randn(2, 128)
    x[1, 37] = value
    for exact in (True, False):
        found = Product([(weight, None)], exact)(x)
        assert found[0].isfinite().all()
        assert not found[1].isfinite().any()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_floats(dtype, exact):
    """Weights that are not quantized give other products than they should."""
    weight = torch.randn(83, 201).to(dtype)
    packed = PackedFloats(83, 201, pack_floats(weight))
    for rows in ROWS:
        x = torch.randn(rows, 201)
        rounded = x.bfloat16() if dtype == torch.bfloat16 and not exact else x
        expected = rounded.double() @ weight.double().T
        found = Product([(packed, None)], exact)(x)
        assert_near(found, expected, x, weight)
        assert torch.equal(found[:1], Product([(packed, None)], exact)(x[:1]))
    ids = torch.tensor([[0, 82], [17, 3]])
    assert torch.equal(rows_of(packed, ids), weight[ids])


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_row_does_not_depend_on_the_others(packing, exact):
    """A request gets other tokens in a batch than alone."""
    product = Product([(quantized(48, 256, packing), None)], exact)
    x = torch.randn(40, 256)
    together = product(x)
    for rows in ROWS:
        assert torch.equal(product(x[:rows]), together[:rows])
    assert torch.equal(product(x[7:8]), together[7:8])


def test_weights_side_by_side():
    """Joined projections write over each other's results."""
    packing = Packing(bits=4, group_size=32)
    parts = [(quantized(n, 96, packing, n), torch.randn(n)) for n in (48, 5, 21)]
    x = torch.randn(9, 96)
    apart = torch.cat([Product([part], False)(x) for part in parts], dim=-1)
    assert torch.equal(Product(parts, False)(x), apart)


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 31, 32, 33, 100, 4096])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_norms_and_activations(rows, width):
    """A tail of the last register is left out, or an approximation is off."""
    x = torch.randn(rows, width) * 8
    weight, bias = torch.randn(2, width).unbind()
    out = torch.empty_like(x)
    where = (1e-5, out.data_ptr(), rows, width)
    native.norm(x.data_ptr(), weight.data_ptr(), 0, *where)
    assert_close(out, torch.nn.functional.rms_norm(x, (width,), weight, 1e-5), rtol=0, atol=2e-5)
    native.norm(x.data_ptr(), weight.data_ptr(), bias.data_ptr(), *where)
    expected = torch.nn.functional.layer_norm(x, (width,), weight, bias, 1e-5)
    assert_close(out, expected, rtol=0, atol=2e-5)
    functions = (
        torch.nn.functional.silu,
        lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
        torch.nn.functional.gelu,
        lambda x: x * torch.sigmoid(1.702 * x),
    )
    both = torch.cat([x, x.flip(0)], dim=1)
    for family, function in enumerate(functions):
        native.activate(family, False, x.data_ptr(), out.data_ptr(), rows, width)
        assert_close(out, function(x), rtol=1e-6, atol=2e-6)  # 8 times erf's 1.5e-7, and roundings
        native.activate(family, True, both.data_ptr(), out.data_ptr(), rows, width)
        assert_close(out, function(x) * x.flip(0), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("value", [0.0, -100.0, 100.0, 1e30, -1e30, 1e-30])
def test_activations_of_extremes(value):
    """Large activations become NaN."""
    x, out = torch.full((1, 5), value), torch.empty(1, 5)
    for family, function in enumerate((torch.nn.functional.silu, torch.nn.functional.gelu)):
        native.activate(2 * family, False, x.data_ptr(), out.data_ptr(), 1, 5)
        assert_close(out, function(x), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("planes", "pairs"), [(1, 4), (2, 2), (1, 2)])
def test_rotation(interleaved, planes, pairs):
    """Compiled networks turn other elements than the network they were made from."""
    rotate = rotate_interleaved if interleaved else rotate_half_split
    x = torch.randn(2, 5, 3, 8)  # (B, T, heads, D)
    angles = torch.randn(2, 5, 1, planes, pairs)
    rotation = Rotation(angles.cos(), angles.sin())
    expected = x.clone()
    expected[:, :, :2] = rotate(x[:, :, :2], rotation)  # the third head holds values
    where = (rotation.cos.data_ptr(), rotation.sin.data_ptr(), planes, pairs, interleaved)
    native.rotate(x.data_ptr(), 3 * 8, 2 * 5, 2, 8, *where)
    assert_close(x, expected, rtol=0, atol=1e-6)


def test_the_pool_survives_a_fork_and_other_threads():
    """A server that forks, or computes in several threads, hangs or mixes results."""
    product = Product([(quantized(512, 512, Packing(bits=4, group_size=32)), None)], False)
    x = torch.randn(20, 512)
    expected = product(x)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(product(x), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(y, expected) for y in threads.map(product, [x] * 200))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(threads):
    """Results depend on who computes which piece."""
    product = Product([(quantized(512, 512, Packing(bits=8, group_size=32)), None)], False)
    x = torch.randn(20, 512)
    expected, before = product(x), native.num_threads()
    try:
        native.set_num_threads(threads)
        assert native.num_threads() == threads
        assert all(torch.equal(product(x), expected) for _ in range(50))
    finally:
        native.set_num_threads(before)
