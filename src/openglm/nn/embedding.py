"""The word embedding, which may be the output head as well."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear


class Embedding(nn.Embedding):
    """Token ids to vectors; `logits` goes back, for models whose head is tied to it."""

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) hidden states -> (..., V): their products with every row."""
        return linear(hidden, self.weight)
