"""`PagedReader`: what `Decoder` is for a batch, for one sequence whose pages the kernels read.

There is no mask of tokens by tokens, and grouped keys are not copied for each query head.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from openglm.engine.decoder import Decoder
from openglm.engine.paged_cache import PagedCache, Part, page_bytes, pages_for
from openglm.engine.prompt import check_length
from openglm.kernels.cpu import module
from openglm.memory import READ_AT_ONCE_COMPILED
from openglm.model import Transformer


class PagedReader:
    """Feeds one prompt to a network, token after token, and holds its keys and values.

    Args:
        model: a network in float32 on a CPU.
        context_ids: (1, T) int64; T may be 0.
        num_new_tokens: how many tokens will follow at most.
        is_causal: each context token sees those before it, instead of all.

    Raises:
        RequestError: the context has more tokens than the model has positions.
    """

    def __init__(
        self,
        model: Transformer,
        context_ids: Tensor,
        num_new_tokens: int,
        is_causal: bool = False,
    ) -> None:
        length = context_ids.shape[1]
        check_length(model.config, length)
        self.model = model
        num_prefix = 0 if model.prefix is None else model.prefix.keys.shape[1]
        num_pages = pages_for(num_prefix + length + num_new_tokens)
        self.cache = PagedCache(model, num_pages * page_bytes(model.config, torch.float32))
        self.pages = range(num_pages)
        self.length = 0
        self.visible = 0 if is_causal else length
        if num_prefix:
            self.cache.write_prefix(self.pages, 0)
        positions = torch.arange(length)[None]
        blocks = torch.zeros_like(positions)
        piece = READ_AT_ONCE_COMPILED if is_causal else length
        for start in range(0, length, max(piece, 1)):
            part = slice(start, start + piece)
            self._forward(context_ids[:, part], positions[:, part], blocks[:, part])

    @torch.no_grad()
    def feed(self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """Appends (1, T) tokens that see everything before them; returns logits (1, T, V)."""
        return self.model.logits(self._forward(tokens, position_ids, block_position_ids)).float()

    def rewind(self, length: int) -> None:
        """Forgets all tokens but the first `length`."""
        self.length = length

    def copy(self) -> PagedReader:
        """One with the same content that grows on its own."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        return other

    @torch.no_grad()
    def _forward(self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        count = tokens.shape[1]
        part = Part(count, self.length + count, self.visible, self.pages)
        context = self.cache.context([part])
        hidden = self.model.run(tokens, position_ids, block_position_ids, context)
        self.length += count
        return hidden


def reader_for(model: Transformer) -> type[Decoder | PagedReader]:
    """The faster kind of reader."""
    is_paged = model.device.type == "cpu" and model.dtype == torch.float32 and module() is not None
    return PagedReader if is_paged else Decoder
