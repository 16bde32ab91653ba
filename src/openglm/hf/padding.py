"""Mask and positions of one padded row of ChatGLM-6B, as its tokenizer gives them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def prefix_mask(ids: Sequence[int], real: Tensor, sop: int) -> Tensor:
    """(1, T, T) bool, True = blocked: causal, but all before `sop` is open; padding is blocked.

    Args:
        ids: T tokens.
        real: (T,) bool, False = padding.
        sop: its id; a row without one is context whole.
    """
    end = ids.index(sop) if sop in ids else len(ids)
    allowed = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    allowed[:, :end] = True
    return ~(allowed & real[None, :] & real[:, None])[None]


def prefix_positions(ids: Sequence[int], real: Tensor, sop: int, blanks: Sequence[int]) -> Tensor:
    """(2, T) int64: positions, which stay at the blank from `sop` on; block positions 1, 2, ...

    Args:
        ids: T tokens.
        real: (T,) bool, False = padding, which has positions 0.
        sop: its id.
        blanks: ids of blanks; the first kind that is there counts. The official tokenizer prefers
            [MASK] to [gMASK], the official model the other way round.
    """
    counted = torch.where(real, real.long().cumsum(0) - 1, 0)
    blocks = torch.zeros_like(counted)
    if sop in ids:
        start = ids.index(sop)
        blank = next((ids.index(blank) for blank in blanks if blank in ids), start)
        blocks[start:] = torch.arange(1, len(ids) - start + 1)
        counted[start:] = counted[blank]
    return torch.stack([counted, blocks])
