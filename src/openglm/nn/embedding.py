"""Tables of vectors; that of words may be the output head as well."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class Table(nn.Embedding):
    """Vectors that are looked up."""

    def reset_parameters(self) -> None:
        """Draws nothing for shapes alone: torch would load its compiler for that, 2 seconds."""
        if not self.weight.is_meta:
            super().reset_parameters()


class Embedding(Table):
    """Token ids to vectors; `logits` goes back, for models whose head is tied to it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) hidden states -> (..., V): their products with every row."""
        return linear(hidden, self.weight)
