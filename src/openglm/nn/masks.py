"""`MaskSpec`: who may attend to whom, with one meaning everywhere: True = may attend."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, slots=True)
class MaskSpec:
    """One attention mask for a forward call. Build it with `causal`, `prefix` or `explicit`."""

    prefix_lengths: Tensor | None = None
    """(B,) int64: columns below it are visible to every row; after it the mask is causal."""
    allowed: Tensor | None = None
    """(B, T, S) bool: the mask itself."""

    @classmethod
    def causal(cls) -> MaskSpec:
        """Each token sees itself and all before it."""
        return cls()

    @classmethod
    def prefix(cls, lengths: Tensor) -> MaskSpec:
        """A context of `lengths` (B,) tokens sees itself whole; what follows is causal."""
        return cls(prefix_lengths=lengths)

    @classmethod
    def explicit(cls, allowed: Tensor) -> MaskSpec:
        """The mask given as (B, T, S) bool."""
        return cls(allowed=allowed)

    def to(self, device: torch.device) -> MaskSpec:
        """The same mask on another device."""
        move = [x if x is None else x.to(device) for x in (self.prefix_lengths, self.allowed)]
        return MaskSpec(*move)

    def dense(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """The mask as (1 or B, T, S) bool; queries are the last `num_queries` of `num_keys`."""
        if self.allowed is not None:
            return self.allowed
        columns = torch.arange(num_keys, device=device)
        rows = columns[num_keys - num_queries :]
        allowed = (columns <= rows[:, None])[None]  # (1, T, S)
        if self.prefix_lengths is not None:
            allowed = allowed | (columns < self.prefix_lengths[:, None])[:, None]  # (B, T, S)
        return allowed

    def bias(
        self, num_queries: int, num_keys: int, device: torch.device, num_prefix: int = 0
    ) -> Tensor | None:
        """The kernel argument: (1 or B, 1, T, num_prefix + S) float32 to add to scores, or None.

        None means that all is visible: one query at the end without an explicit mask.

        A blocked place gets the most negative finite number. It absorbs any score, so a row that
        may attend to nothing becomes uniform instead of NaN, as in the official GLM code.
        """
        if num_queries == 1 and self.allowed is None:
            return None
        allowed = self.dense(num_queries, num_keys, device)
        blocked = torch.zeros(allowed.shape, dtype=torch.float32, device=device)
        blocked.masked_fill_(~allowed, torch.finfo(torch.float32).min)
        blocked = pad(blocked, (num_prefix, 0))  # a prefix is visible to all
        return blocked[:, None]  # (1 or B, 1, T, S)
