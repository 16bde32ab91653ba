"""What token ids alone imply: positions and mask, as the official code derives them."""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.errors import RequestError
from openglm.nn.masks import MaskSpec


def implied_mask(
    config: ModelConfig, token_ids: dict[str, int], input_ids: Tensor, real: Tensor | None = None
) -> MaskSpec:
    """Who sees whom in (B, S) int64 ids.

    With `context="explicit"`: causal. With "until_sop" (ChatGLM-6B, GLM-130B): all before `sop` is
    context and sees itself whole; the rest is causal.

    Args:
        config: the architecture.
        token_ids: ids of command tokens by role.
        input_ids: (B, S) int64.
        real: (B, S) bool, False = padding, which nobody sees and which itself sees nothing; None =
            there is none.

    Raises:
        RequestError: a row without `sop`, where it matters.
    """
    if config.context == "explicit":
        spec = MaskSpec.causal()
    else:
        spec = MaskSpec.prefix(_first(input_ids, token_ids, "sop"))
    if real is None:
        return spec
    allowed = spec.dense(input_ids.shape[1], input_ids.shape[1], input_ids.device)  # (.., S, S)
    return MaskSpec.explicit(allowed & real[:, None, :] & real[:, :, None])


def implied_positions(
    config: ModelConfig, token_ids: dict[str, int], input_ids: Tensor, real: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Positions and block positions of (B, S) int64 ids on the CPU, each (B, S) int64.

    With `context="explicit"`: 0, 1, 2, ... and no block positions. With "until_sop", positions stay
    at the blank from `sop` on, `[gMASK]` before `[MASK]` if there are both, and block positions
    count 1, 2, ... . A model without block positions goes on counting behind `[gMASK]` instead.

    Args:
        config: the architecture.
        token_ids: ids of command tokens by role.
        input_ids: (B, S) int64.
        real: (B, S) bool, False = padding, which is not counted and has positions 0; None = there
            is none.

    Raises:
        RequestError: a row without `sop` or without a blank, where these matter.
    """
    if real is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
    counted = torch.where(real, real.long().cumsum(dim=1) - 1, 0)  # (B, S)
    if config.context == "explicit":
        return counted, torch.zeros_like(input_ids)
    lengths = counted.gather(1, _first(input_ids, token_ids, "sop")[:, None])  # (B, 1)
    rows = [_blank(row, token_ids, number) for number, row in enumerate(input_ids)]
    blanks = counted.gather(1, torch.tensor([[place] for place, _ in rows]))  # (B, 1)
    counts_on = torch.tensor([is_long and config.position != "rotary_2d" for _, is_long in rows])
    generated = real & (counted >= lengths)
    frozen = generated & ~counts_on[:, None]
    return (
        torch.where(frozen, blanks, counted),
        torch.where(generated, counted - lengths + 1, 0),
    )


def _first(input_ids: Tensor, token_ids: dict[str, int], role: str) -> Tensor:
    """(B,) index of the first token with this role."""
    found = input_ids == token_ids.get(role, -1)
    absent = (~found.any(dim=1)).nonzero().flatten().tolist()
    if absent:
        raise RequestError(
            f"row {absent[0]} of input_ids has no {role} token ({token_ids.get(role, 'unknown')}), "
            "from which positions and mask follow",
            hint="end the prompt with a blank and sop, or give position_ids and mask",
        )
    return found.int().argmax(dim=1)


def _blank(row: Tensor, token_ids: dict[str, int], number: int) -> tuple[int, bool]:
    """Place of the blank that a row fills, and whether it is a long one."""
    for role in ("gmask", "mask", "smask"):
        places = (row == token_ids.get(role, -1)).nonzero()
        if len(places):
            return int(places[0]), role == "gmask"
    raise RequestError(
        f"row {number} of input_ids has no blank ([MASK] or [gMASK]), from which positions follow",
        hint="put one into the prompt, or give position_ids and mask",
    )


def given_mask(mask: Tensor, shape: tuple[int, int, int]) -> MaskSpec:
    """A caller's mask for (B, T, S)."""
    mask = torch.as_tensor(mask)
    if mask.dtype == torch.bool:
        if mask.shape != shape:
            raise RequestError(f"mask has shape {tuple(mask.shape)}; (B, T, S) is {shape} here")
        return MaskSpec.explicit(mask)
    if mask.is_floating_point() or mask.shape != shape[:1]:
        raise RequestError(
            f"mask has shape {tuple(mask.shape)} and dtype {mask.dtype}; "
            "it must be bool (B, T, S), or int (B,) context lengths"
        )
    if mask.numel() and not (int(mask.min()) >= 0 and int(mask.max()) <= shape[2]):
        raise RequestError(
            f"mask has values from {int(mask.min())} to {int(mask.max())}; "
            f"a context length is from 0 to {shape[2]} here"
        )
    return MaskSpec.prefix(mask)


def check_range(name: str, values: Tensor, shape: torch.Size, bound: int) -> None:
    """Raises `RequestError` for ids or positions of another shape, type or range than allowed."""
    if values.shape != shape:
        raise RequestError(f"{name} has shape {tuple(values.shape)}, input_ids {tuple(shape)}")
    if values.dtype not in (torch.int64, torch.int32):
        raise RequestError(f"{name} has dtype {values.dtype}; it must be int64")
    if values.numel() and not (int(values.min()) >= 0 and int(values.max()) < bound):
        raise RequestError(
            f"{name} has values from {int(values.min())} to {int(values.max())}; "
            f"this model takes 0 to {bound - 1}"
        )
