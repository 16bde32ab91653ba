"""Attention under causal and prefix masks without a (T, S) tensor, by torch's FlexAttention.

Row t of T sees the keys before `visible` (its context), and all up to its own, t + S - T. So the
blocks of 128 keys that 128 rows see are the first ones: some wholly, then some in part, then none;
both counts have a closed form, and blocks that nobody sees are never read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

BLOCK = 128
"""Rows and keys of a block: FlexAttention's default, a multiple of its tiles."""


def block_mask(visible: Tensor, num_queries: int, num_keys: int) -> BlockMask:
    """The mask of B rows whose queries are the last `num_queries` of `num_keys`.

    Args:
        visible: (B,) int64, leading keys that every query of a row sees; 0 = causal.
        num_queries: T.
        num_keys: S.
    """
    # A tensor, not a number: for each new number the kernel would be compiled again.
    past = torch.tensor(num_keys - num_queries, device=visible.device)

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key < visible[row]) | (key <= query + past)

    num_blocks = -(-num_keys // BLOCK)
    first = torch.arange(0, num_queries, BLOCK, device=visible.device)  # of the rows of a block
    last = (first + BLOCK).clamp(max=num_queries) - 1
    by_all = torch.maximum(visible[:, None], first + past + 1) // BLOCK  # (B, row blocks)
    by_any = (torch.maximum(visible[:, None], last + past + 1) + BLOCK - 1) // BLOCK
    order = torch.arange(num_blocks, device=visible.device)
    places = (by_all[..., None] + order) % num_blocks  # behind the whole ones, those in part
    in_part, whole = (
        (count[:, None].to(torch.int32).contiguous(), blocks[:, None].to(torch.int32).contiguous())
        for count, blocks in ((by_any - by_all, places), (by_all, order.expand(places.shape)))
    )
    return BlockMask.from_kv_blocks(
        *in_part, *whole, BLOCK, mask_mod=sees, seq_lengths=(num_queries, num_keys)
    )


def prefix_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask) -> Tensor:
    """softmax(q k^T / sqrt(D)) v over what `mask` shows.

    Args:
        queries: (B, T, H, D).
        keys: (B, S, K, D); query head h uses key head h // (H / K).
        values: (B, S, K, D).
        mask: of `block_mask`.

    Returns:
        (B, T, H, D).
    """
    queries, keys, values = (x.transpose(1, 2) for x in (queries, keys, values))  # (B, H, T, D)
    grouped = queries.shape[1] != keys.shape[1]
    mixed = kernel()(queries, keys, values, block_mask=mask, enable_gqa=grouped)
    return mixed.transpose(1, 2)


@cache
def kernel() -> Callable[..., Tensor]:
    """FlexAttention, compiled at its first call for all lengths; otherwise it holds all scores."""
    return torch.compile(flex_attention, dynamic=True)
