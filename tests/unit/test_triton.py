"""The Triton kernels against exact products: on a GPU, or in Triton's interpreter.

make test-triton        installs Triton (a wheel of 286 MB, so `make test` does without), and
                        sets TRITON_INTERPRET=1, which must be there before Triton is imported
"""

from __future__ import annotations

import pytest
import torch

from helpers_packed import FORMS, check_product, random_weight
from openglm.kernels.attention import attention
from openglm.kernels.gpu.available import missing
from openglm.kernels.packed_linear import linear
from openglm.kernels.packing import Packing

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if reason := missing(DEVICE):
    pytest.skip(f"{reason}; `make test-triton` interprets the kernels", allow_module_level=True)

from openglm.kernels.gpu import decode_attention, packed_linear  # noqa: E402  # it needs Triton

SHAPES = [(16, 128), (50, 200), (130, 72)]
"""(N, K): whole blocks; tails in both; several tiles of rows, fewer columns than a step."""


@pytest.mark.parametrize("packing", FORMS, ids=str)
@pytest.mark.parametrize("num_rows", [1, 3, 5, 40])
def test_products_are_exact(num_rows: int, packing: Packing) -> None:
    """A shift, a group, a zero point or a tail that is wrong would garble a quantized model."""
    for rows, columns in SHAPES:
        weight, exact = random_weight(rows, columns, packing, DEVICE)
        generator = torch.Generator().manual_seed(columns)
        x = torch.randn(num_rows, columns, generator=generator)
        bias = torch.randn(rows, generator=generator) if rows % 16 else None
        on_device = None if bias is None else bias.to(DEVICE)
        check_product(linear(x.to(DEVICE), weight, on_device, kernel="triton"), x, exact, bias)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 2, 16, 33])
@pytest.mark.parametrize("bits", [4, 8])
def test_half_precision_loses_no_more_than_its_roundings(
    bits: int, num_rows: int, dtype: torch.dtype
) -> None:
    """Sums in half precision instead of float32 would show in long rows."""
    weight, exact = random_weight(
        48, 320, Packing(bits=bits, group_size=64, symmetric=False), DEVICE
    )
    generator = torch.Generator().manual_seed(num_rows)
    x = torch.randn(num_rows, 320, generator=generator).to(dtype)
    bias = torch.randn(48, generator=generator).to(dtype)
    y = linear(x.to(DEVICE), weight, bias.to(DEVICE), kernel="triton")
    check_product(y, x, exact, bias)


@pytest.mark.parametrize("num_rows", [1, 7, 8])
def test_both_kernels_take_every_small_batch(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The benchmark compares them there; one that is wrong must not win."""
    weight, exact = random_weight(40, 264, Packing(bits=4), DEVICE)
    x = torch.randn(num_rows, 264, generator=torch.Generator().manual_seed(1))
    for num_few_rows in (0, packed_linear.FEW_ROWS):
        y = packed_linear.packed_linear(x.to(DEVICE), weight, None, num_few_rows)
        check_product(y, x, exact, None)


@pytest.mark.parametrize("num_rows", [1, 4, 9])
def test_long_rows_are_split_and_added_up(num_rows: int) -> None:
    """Parts of K that overlap, or a bias added once per part, would shift every output."""
    weight, exact = random_weight(24, 8200, Packing(bits=4), DEVICE)
    assert packed_linear._splits(2, 1025, 64) > 1
    x = torch.randn(num_rows, 8200, generator=torch.Generator().manual_seed(2))
    bias = torch.randn(24, generator=torch.Generator().manual_seed(3))
    y = linear(x.to(DEVICE), weight, bias.to(DEVICE), kernel="triton")
    check_product(y, x, exact, bias)


def test_strided_and_empty_inputs() -> None:
    """A slice or a transpose of a larger tensor is what networks hand over."""
    weight, exact = random_weight(32, 64, Packing(bits=8, group_size=32), DEVICE)
    x = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(5))
    y = linear(x[..., :64].to(DEVICE), weight, kernel="triton")
    check_product(y.flatten(0, 1), x[..., :64].flatten(0, 1), exact, None)
    turned = x[0, :, :64].T.contiguous().T
    check_product(linear(turned.to(DEVICE), weight, kernel="triton"), turned, exact, None)
    assert linear(x[:, :0, :64].to(DEVICE), weight, kernel="triton").shape == (2, 0, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("num_heads", "key_heads"), [(4, 4), (6, 2), (32, 1)])
@pytest.mark.parametrize("num_keys", [1, 65, 200])
def test_decode_attention_sees_what_is_cached(
    num_keys: int, num_heads: int, key_heads: int, dtype: torch.dtype
) -> None:
    """A key behind the last one, a part counted twice, or heads that read others' keys."""
    generator = torch.Generator().manual_seed(num_keys)
    queries = torch.randn(2, 1, num_heads, 32, generator=generator).to(DEVICE, dtype)
    keys, values = torch.randn(2, 2, 230, key_heads, 32, generator=generator).to(DEVICE, dtype)
    keys[:, num_keys:] = values[:, num_keys:] = torch.nan  # never to be read
    place = torch.tensor([num_keys - 1], device=DEVICE)
    found = decode_attention.decode_attention(queries, keys, values, place)
    exact = (x.double() for x in (queries, keys[:, :num_keys], values[:, :num_keys]))
    expected = attention(*exact, None, 0.0)
    assert found.dtype == dtype
    # bf16 rounds the weights to 8 bits, and the result; values are up to 4.
    tolerance = 2e-6 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance)


def test_decode_attention_takes_widths_that_tiles_have() -> None:
    """Heads of other widths go by the plain kernel."""
    widths = [
        w for w in (8, 16, 24, 64, 80, 128) if decode_attention.takes(torch.empty(1, 1, 1, w))
    ]
    assert widths == [16, 64, 128]
