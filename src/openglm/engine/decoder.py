"""`Decoder`: a network, a cache, and the calls that grow it: context first, then blanks."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from openglm.engine.graphs import Steps
from openglm.engine.prompt import check_length
from openglm.memory import READ_AT_ONCE
from openglm.model import Transformer
from openglm.nn.masks import MaskSpec


class Decoder:
    """Decodes one batch of contexts.

    Args:
        model: the network.
        context_ids: (B, T) int64; T may be 0.
        num_new_tokens: how many tokens per row will follow at most.
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
        batch_size, length = context_ids.shape
        check_length(model.config, length)
        device = model.device
        self.model = model
        self.cache = model.new_cache(batch_size, length + num_new_tokens)
        self.steps = Steps(model) if device.type == "cuda" else None
        positions = torch.arange(length).expand(batch_size, length)
        prefix = MaskSpec.prefix(torch.full((batch_size,), length, device=device))
        mask = MaskSpec.causal() if is_causal else prefix
        blocks = torch.zeros_like(positions)
        piece = READ_AT_ONCE if is_causal else length  # a context that sees itself is one piece
        for start in range(0, length, max(piece, 1)):
            part = slice(start, start + piece)
            self._forward(context_ids[:, part], positions[:, part], blocks[:, part], mask)

    @property
    def length(self) -> int:
        """Tokens read so far."""
        return self.cache.length

    def rewind(self, length: int) -> None:
        """Forgets all tokens but the first `length`."""
        self.cache.length = length

    def copy(self) -> Decoder:
        """One with the same content that grows on its own."""
        other = copy.copy(self)
        other.cache = self.cache.copy()
        return other

    @torch.no_grad()
    def feed(self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """Appends (B, T) tokens that see everything before them; returns logits (B, T, V)."""
        if tokens.shape[1] == 1 and self.steps is not None:
            self.cache.reserve(*tokens.shape)
            if step := self.steps.ready(self.cache):
                return step.logits(tokens, position_ids, block_position_ids)
        return self.model.logits(self.read(tokens, position_ids, block_position_ids)).float()

    def read(self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """Like `feed`, without the logits: hidden states (B, T, C)."""
        self.cache.reserve(*tokens.shape)
        return self._forward(tokens, position_ids, block_position_ids, MaskSpec.causal())

    def feed_blank(
        self, tokens: list[int], mask_position: int, block_position: int, counts_on: bool = False
    ) -> Tensor:
        """Appends T tokens of one blank to a batch of one; returns logits (T, V) float32.

        Args:
            tokens: the tokens, the first of a blank being `sop`.
            mask_position: of the blank.
            block_position: of the first of `tokens`; `sop` has 1.
            counts_on: positions go on from the blank's, instead of staying at it.
        """
        blocks = torch.arange(block_position, block_position + len(tokens))[None]
        positions = mask_position + blocks * counts_on
        return self.feed(torch.tensor([tokens]), positions, blocks)[0]

    @torch.no_grad()
    def _forward(
        self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor, mask: MaskSpec
    ) -> Tensor:
        device = self.model.device
        return self.model(  # type: ignore[no-any-return]
            tokens.to(device),
            position_ids.to(device),
            block_position_ids.to(device),
            mask,
            self.cache,
        )
