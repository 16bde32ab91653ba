"""Attention over pages against attention over whole rows."""

from __future__ import annotations

import pytest
import torch

from helpers_pages import KV_HEADS, SEQUENCES, WIDTH, empty_pages, expected, filled, segments
from openglm.kernels import cpu, paged_attention
from openglm.kernels.paged_attention import PAGE_TOKENS, Segments, attend, store


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def kernels(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(paged_attention.compiled, "can_take", lambda *_: False)
    elif cpu.module() is None:
        pytest.skip(str(cpu.why_not()))


@pytest.mark.parametrize("piece", [1 << 23, 2000])
def test_every_sequence_as_if_alone(monkeypatch, piece):
    """A query sees keys of another sequence, of empty slots, or of later tokens."""
    monkeypatch.setattr(paged_attention, "MAX_SCORE_ELEMENTS", piece)
    queries, pages, last, whole = filled()
    found = attend(queries, pages, last)
    for row, ((keys, values), (_, _, visible)) in enumerate(zip(whole, SEQUENCES, strict=True)):
        part = slice(last.starts[row], last.starts[row + 1])
        torch.testing.assert_close(found[part], expected(queries[part], keys, values, visible))


def test_neighbours_change_no_bit():
    """The same query gives other numbers in another batch."""
    queries, pages, last, _ = filled()
    found = attend(queries, pages, last)
    for row in range(len(SEQUENCES)):
        part = slice(last.starts[row], last.starts[row + 1])
        one = Segments(
            torch.tensor([0, part.stop - part.start]).int(),
            *(x[row : row + 1] for x in (last.lengths, last.visible, last.pages)),
        )
        assert torch.equal(attend(queries[part], pages, one), found[part])


def test_int8_is_rounded_per_token_and_head():
    """An outlier in one head costs the precision of another, or of other tokens."""
    queries, pages, last, whole = filled(torch.int8)
    keys, _ = whole[0]
    table = last.pages[0].long()
    index = torch.arange(len(keys))
    page, slot = table[index // PAGE_TOKENS], index % PAGE_TOKENS
    stored, scales = pages.keys[page, :, :, slot], pages.key_scales[page, :, slot]
    torch.testing.assert_close(scales, keys.abs().amax(-1) / 127)
    assert ((stored * scales[..., None] - keys).abs() <= scales[..., None] * 0.5001).all()
    found = attend(queries, pages, last)
    part = slice(last.starts[0], last.starts[1])
    # Half a step of each of keys and values, 1/254 of the largest of 8 normal elements.
    torch.testing.assert_close(
        found[part], expected(queries[part], *whole[0], 0), atol=0.05, rtol=0
    )


def test_int8_of_zeros_is_zero():
    """A token whose keys are all zero becomes NaN."""
    pages = empty_pages(torch.int8)
    zeros = torch.zeros(3, KV_HEADS, WIDTH)
    store(pages, zeros, zeros, segments([3], [3], [0], torch.tensor([[1]], dtype=torch.int32)))
    assert not pages.keys[1, :, :, :3].any()
    assert not pages.key_scales[1, :, :3].any()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32])
def test_what_is_not_finite_stays_so(dtype, wrong):
    """No integer is NaN, and a damaged network goes on writing."""
    pages = empty_pages(dtype)
    vectors = torch.ones(3, KV_HEADS, WIDTH)
    vectors[1, 0, 2] = wrong
    part = segments([3], [3], [0], torch.tensor([[1]], dtype=torch.int32))
    store(pages, vectors, vectors, part)
    found = attend(torch.ones(3, KV_HEADS, WIDTH), pages, part)
    assert not torch.isfinite(found[1:, 0]).all(-1).any()


def test_bfloat16_pages_hold_rounded_values():
    """Keys in bf16 are attended to in another dtype than that of the queries."""
    queries, pages, last, whole = filled(torch.bfloat16)
    found = attend(queries, pages, last)
    assert found.dtype == torch.float32
    keys, values = (x.bfloat16().float() for x in whole[2])
    part = slice(last.starts[2], last.starts[3])
    torch.testing.assert_close(found[part], expected(queries[part], keys, values, 0))
