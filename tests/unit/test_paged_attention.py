"""Attention over pages against attention over whole rows."""

from __future__ import annotations

import pytest
import torch

from openglm.kernels import cpu, paged_attention
from openglm.kernels.attention import reference
from openglm.kernels.paged_attention import PAGE_TOKENS, Pages, Segments, attend, store

HEADS, KV_HEADS, WIDTH, NUM_PAGES = 6, 2, 40, 24  # two registers of sixteen, and a tail
SEQUENCES = [(70, 70, 0), (1, 40, 0), (5, 37, 0), (33, 33, 33), (1, 50, 20), (20, 64, 50)]
"""(new tokens, keys, visible): reading, decoding, pieces, whole contexts, blanks, both."""


@pytest.fixture(autouse=True, params=["compiled", "reference"])
def kernels(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(paged_attention.compiled, "can_take", lambda *_: False)
    elif cpu.module() is None:
        pytest.skip(str(cpu.why_not()))


def empty_pages(dtype=torch.float32):
    heads = (NUM_PAGES, KV_HEADS)
    keys = torch.full((*heads, WIDTH, PAGE_TOKENS), 99).to(dtype)
    values = torch.full((*heads, PAGE_TOKENS, WIDTH), 99).to(dtype)
    if dtype != torch.int8:
        return Pages(keys, values)
    return Pages(keys, values, *(torch.full((*heads, PAGE_TOKENS), 99.0) for _ in range(2)))


def tables(generator):
    """Pages of the sequences, in no order and with gaps."""
    shuffled = torch.randperm(NUM_PAGES, generator=generator).tolist()
    rows = [[shuffled.pop() for _ in range(-(-keys // PAGE_TOKENS))] for _, keys, _ in SEQUENCES]
    table = torch.full((len(rows), max(map(len, rows))), -1, dtype=torch.int32)
    for row, pages in zip(table, rows, strict=True):
        row[: len(pages)] = torch.tensor(pages)
    return table


def segments(counts, lengths, visible, table):
    starts = torch.tensor([0, *counts]).cumsum(0)
    return Segments(starts.int(), torch.tensor(lengths).int(), torch.tensor(visible).int(), table)


def expected(queries, keys, values, visible):
    """One sequence by the specification, with an explicit mask."""
    num_keys, num_queries = len(keys), len(queries)
    index = torch.arange(num_keys - num_queries, num_keys)
    allowed = torch.arange(num_keys) < torch.maximum(index + 1, torch.tensor(visible))[:, None]
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)[None, None]
    rows = (x[None].transpose(1, 2) for x in (queries, keys, values))
    return reference(*rows, bias, 0.0).transpose(1, 2)[0]


def filled(dtype=torch.float32):
    """Pages that hold all sequences, the old tokens stored before the new; and the tensors."""
    generator = torch.Generator().manual_seed(0)
    table = tables(generator)
    pages = empty_pages(dtype)
    whole = [
        [torch.randn(keys, KV_HEADS, WIDTH, generator=generator) for _ in range(2)]
        for _, keys, _ in SEQUENCES
    ]
    queries = torch.randn(sum(n for n, _, _ in SEQUENCES), HEADS, WIDTH, generator=generator)
    old = [keys - new for new, keys, _ in SEQUENCES]
    everyone = [
        (old, old, [0] * len(old), [slice(0, n) for n in old]),
        (
            [new for new, _, _ in SEQUENCES],
            [keys for _, keys, _ in SEQUENCES],
            [visible for *_, visible in SEQUENCES],
            [slice(n, None) for n in old],
        ),
    ]
    for counts, lengths, visible, parts in everyone:
        last = segments(counts, lengths, visible, table)
        packed = [
            torch.cat([pair[i][part] for pair, part in zip(whole, parts, strict=True)])
            for i in range(2)
        ]
        store(pages, *packed, last)
    return queries, pages, last, whole


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


def test_bfloat16_pages_hold_rounded_values():
    """Keys in bf16 are attended to in another dtype than that of the queries."""
    queries, pages, last, whole = filled(torch.bfloat16)
    found = attend(queries, pages, last)
    assert found.dtype == torch.float32
    keys, values = (x.bfloat16().float() for x in whole[2])
    part = slice(last.starts[2], last.starts[3])
    torch.testing.assert_close(found[part], expected(queries[part], keys, values, 0))
