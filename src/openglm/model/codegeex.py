"""CodeGeeX-13B: one more block on top, whose queries are learned per position.

The block's keys and values come from the normed hidden states; its queries from a table that
knows only the position, as in PanGu-alpha (CodeGeeX paper, section 2.2). Nothing is normed behind.
"""

from __future__ import annotations

from torch import Tensor

from openglm.config import ModelConfig
from openglm.model.transformer import BLOCKS, Transformer
from openglm.nn.context import Context
from openglm.nn.embedding import Table


class TopQueryTransformer(Transformer):
    """A `Transformer` with the top-query block behind its final norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.top_queries = Table(config.position_rows, config.hidden_size)
        self.top_layer = BLOCKS[config.residual](config)

    def top(self, x: Tensor, position_ids: Tensor, context: Context) -> Tensor:
        """(B, T, C) -> (B, T, C); the block is the last layer of the context."""
        queries = self.top_queries(position_ids)  # (B, T, C)
        return self.top_layer(x, None, context.layer(len(self.layers)), queries)  # type: ignore[no-any-return]
