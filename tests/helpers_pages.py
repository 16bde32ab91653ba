"""Sequences in pages, and attention to them by the specification."""

from __future__ import annotations

import torch

from openglm.kernels.attention import reference
from openglm.kernels.paged_attention import PAGE_TOKENS, Pages, Segments, store

HEADS, KV_HEADS, WIDTH, NUM_PAGES = 6, 2, 40, 24  # two registers of sixteen, and a tail
SEQUENCES = [(70, 70, 0), (1, 40, 0), (5, 37, 0), (33, 33, 33), (1, 50, 20), (20, 64, 50)]
"""(new tokens, keys, visible): reading, decoding, pieces, whole contexts, blanks, both."""


def empty_pages(dtype=torch.float32, width=WIDTH, key_heads=KV_HEADS):
    heads = (NUM_PAGES, key_heads)
    keys = torch.full((*heads, width, PAGE_TOKENS), 99).to(dtype)
    values = torch.full((*heads, PAGE_TOKENS, width), 99).to(dtype)
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


def filled(dtype=torch.float32, width=WIDTH, heads=(HEADS, KV_HEADS)):
    """Pages that hold all sequences, the old tokens stored before the new; and the tensors."""
    generator = torch.Generator().manual_seed(0)
    table = tables(generator)
    num_heads, key_heads = heads
    pages = empty_pages(dtype, width, key_heads)
    whole = [
        [torch.randn(keys, key_heads, width, generator=generator) for _ in range(2)]
        for _, keys, _ in SEQUENCES
    ]
    num_queries = sum(n for n, _, _ in SEQUENCES)
    queries = torch.randn(num_queries, num_heads, width, generator=generator)
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
