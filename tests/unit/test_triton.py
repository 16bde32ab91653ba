"""The Triton kernels against exact products: on a GPU, or in Triton's interpreter.

make test-triton        installs Triton (a wheel of 286 MB, so `make test` does without), and
                        sets TRITON_INTERPRET=1, which must be there before Triton is imported
"""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from helpers_engine import make_engine, random_prompt
from helpers_packed import FORMS, check_product, random_weight
from helpers_pages import filled
from openglm.engine import paged_cache
from openglm.engine.engine import finish
from openglm.engine.params import SamplingParams
from openglm.kernels import paged_attention as plain
from openglm.kernels.attention import attention
from openglm.kernels.gpu.available import missing, takes
from openglm.kernels.packed_linear import linear
from openglm.kernels.packing import Packing
from openglm.kernels.paged_attention import Pages, Segments

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

if reason := missing(DEVICE):
    pytest.skip(f"{reason}; `make test-triton` interprets the kernels", allow_module_level=True)

from openglm.kernels.gpu import (  # noqa: E402  # they need Triton
    decode_attention,
    packed_linear,
    paged_attention,
)

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


def test_attention_takes_widths_that_tiles_have() -> None:
    """Heads of other widths go by the plain kernel."""
    assert [width for width in (8, 16, 24, 64, 80, 128) if takes(width)] == [16, 64, 128]


@pytest.mark.parametrize(
    ("heads", "stored"),
    [
        ((4, 4), torch.float32),
        ((6, 2), torch.bfloat16),
        ((6, 2), torch.int8),
        ((32, 1), torch.float32),
    ],
)
def test_paged_attention_sees_what_each_token_may(
    heads: tuple[int, int], stored: torch.dtype
) -> None:
    """A page of another sequence, a later token, or a context that does not see itself."""
    queries, pages, segments, _ = on_device(*filled(stored, 32, heads))
    found = paged_attention.attend(queries, pages, segments)
    expected = plain.attend(queries.cpu(), to(pages, "cpu"), segments)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=5e-6)


def test_paged_attention_in_half_precision() -> None:
    """Scores or sums in bf16 instead of float32."""
    queries, pages, segments, _ = on_device(*filled(torch.bfloat16, 64))
    found = paged_attention.attend(queries.bfloat16(), pages, segments)
    expected = plain.attend(queries.bfloat16().float().cpu(), to(pages, "cpu"), segments)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float().cpu(), expected, rtol=0, atol=0.03)


def test_paged_attention_of_many_keys() -> None:
    """Parts of a long text are not put together, or one is counted twice."""
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1500, 1, 16, generator=generator)
    table = torch.arange(47, dtype=torch.int32)[None]
    pages = Pages(torch.zeros(47, 1, 16, 32), torch.zeros(47, 1, 32, 16))
    everything = Segments(*(torch.tensor(n).int() for n in ([0, 1500], [1500], [0])), table)
    plain.store(pages, keys, values, everything)
    last = Segments(*(torch.tensor(n).int() for n in ([0, 1], [1500], [0])), table)
    query = torch.randn(1, 3, 16, generator=generator)
    query, pages, last, _ = on_device(query, pages, last, None)
    found = paged_attention.attend(query, pages, last)
    expected = plain.attend(query.cpu(), to(pages, "cpu"), last)
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=2e-6)


@pytest.mark.skipif(DEVICE.type == "cuda", reason="the recorded networks run on the CPU")
@pytest.mark.parametrize("name", ["chatglm/chatglm2_tiny", "chatglm/chatglm6b_tiny", "glm/hf"])
def test_an_engine_on_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine hands the kernel other pages, places or orders than the reference."""
    prompts = [random_prompt(name, random.Random(length), length) for length in (1, 7, 40)]
    runs = []
    for kernel in (plain.attend, paged_attention.attend):
        monkeypatch.setattr(paged_cache, "attend", kernel)
        engine = make_engine(name, pages=20)
        requests = [engine.add(prompt, SamplingParams(max_tokens=2)) for prompt in prompts]
        finish(engine, requests)
        runs.append([[step.token for step in request.steps] for request in requests])
    assert runs[0] == runs[1]


def to(pages: Pages, device: str | torch.device) -> Pages:
    """The same on another device."""
    parts = (pages.keys, pages.values, pages.key_scales, pages.value_scales)
    return Pages(*(None if part is None else part.to(device) for part in parts))  # type: ignore[arg-type]


def on_device(queries: Any, pages: Pages, segments: Segments, rest: Any) -> Any:
    """Queries and pages where the kernels run."""
    return queries.to(DEVICE), to(pages, DEVICE), segments, rest
