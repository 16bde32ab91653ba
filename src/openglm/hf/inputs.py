"""What callers feed to a model: ids, positions and masks in the official forms."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.errors import RequestError


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of one forward call; see `OfficialModel.forward`."""

    input_ids: Tensor
    position_ids: Tensor | None
    attention_mask: Tensor | None


def padding_of(attention_mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """(B, S) bool on the CPU, False = padding; None if there is none.

    Args:
        attention_mask: (B, S), 0 = padding; anything of four dimensions says who sees whom instead.
        shape: (B, S), tokens in the cache included.

    Raises:
        RequestError: a mask of another shape.
    """
    if attention_mask is None or attention_mask.dim() == 4:
        return None
    if attention_mask.shape != shape:
        raise RequestError(
            f"attention_mask has shape {tuple(attention_mask.shape)}; the tokens, those in the "
            f"cache included, have {tuple(shape)}"
        )
    real = attention_mask.bool().cpu()
    return None if bool(real.all()) else real


def next_positions(position_ids: Tensor, count: int) -> Tensor:
    """Appends the positions of `count` generated tokens.

    Args:
        position_ids: (B, T); or (B, 2, T), where the position stays at the blank and the block
            position counts on, as in ChatGLM-6B.
        count: new tokens per row.
    """
    steps = torch.arange(1, count + 1, device=position_ids.device)
    last = position_ids[..., -1:]  # (B, 1) or (B, 2, 1)
    if position_ids.dim() == 3:
        steps = torch.stack([torch.zeros_like(steps), steps])  # (2, count)
    return torch.cat([position_ids, last + steps], dim=-1)
