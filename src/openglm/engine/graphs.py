"""Steps of one token on a GPU: recorded once as a CUDA graph, then replayed.

A step of a 6B model is hundreds of small kernels, and starting them one by one from Python can take
longer than running them. A recorded step starts as a whole. It belongs to one cache, one batch size
and one window of the cache; a new window is recorded every `WINDOW` tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.model import Transformer
from openglm.nn.cache import KVCache
from openglm.nn.static import StaticContext

WINDOW = 512
"""Places of the cache by which windows grow: attention reads at most so many in vain."""
RECORD_AFTER = 8
"""Plain steps before one is recorded, which takes about as long as three of them."""
WARM_UPS = 2
"""Runs before recording, in which kernels are compiled and libraries take their workspaces."""


class StaticStep:
    """One token per row, by the same kernels on the same tensors every time.

    Args:
        model: the network, in eval mode.
        cache: of its keys and values; has room for one more token.
        records: whether the step becomes a CUDA graph; otherwise it is run as it stands.
    """

    def __init__(self, model: Transformer, cache: KVCache, records: bool) -> None:
        self.model = model
        room = cache.num_prefix + cache.max_length
        used = cache.num_prefix + cache.length
        self.context = StaticContext(cache, min(room, (used // WINDOW + 1) * WINDOW))
        self.tensors = cache.keys[0]
        device = self.tensors.device
        self.inputs = torch.zeros((3, cache.batch_size, 1), dtype=torch.int64, device=device)
        self.graph: torch.cuda.CUDAGraph | None = None
        if records:
            with torch.cuda.device(device):
                self._record()

    def belongs_to(self, cache: KVCache) -> bool:
        """Whether it reads and writes the tensors that `cache` has now."""
        return cache is self.context.cache and cache.keys[0] is self.tensors

    def reaches(self, cache: KVCache) -> bool:
        """Whether the next token of `cache` is inside the window."""
        return cache.num_prefix + cache.length < self.context.window

    @torch.no_grad()
    def logits(self, tokens: Tensor, position_ids: Tensor, block_position_ids: Tensor) -> Tensor:
        """Reads (B, 1) tokens into the cache; returns their logits (B, 1, V) float32."""
        for place, values in zip(
            self.inputs, (tokens, position_ids, block_position_ids), strict=True
        ):
            place.copy_(values)
        self.context.follow()
        if self.graph is None:
            found = self._run()
        else:
            self.graph.replay()
            found = self.output.clone()  # the next replay writes there again
        self.context.cache.advance(1)
        return found

    def _run(self) -> Tensor:
        tokens, position_ids, block_position_ids = self.inputs
        hidden = self.model.run(tokens, position_ids, block_position_ids, self.context)
        return self.model.logits(hidden).float()

    @torch.no_grad()
    def _record(self) -> None:
        """Records one run; every run here writes where the next token will."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream().wait_stream(aside)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.output = self._run()


class Steps:
    """The one-token steps of a decoder: plain ones at first, then static ones.

    Args:
        model: the network.
        records: see `StaticStep`.
    """

    def __init__(self, model: Transformer, records: bool = True) -> None:
        self.model, self.records = model, records
        self.num_plain = 0
        self.step: StaticStep | None = None

    def ready(self, cache: KVCache) -> StaticStep | None:
        """The static step that reads the next token of `cache`; None = take a plain one."""
        if self.step is not None and not self.step.belongs_to(cache):
            self.step, self.num_plain = None, 0
        if self.step is not None and self.step.reaches(cache):
            return self.step
        if self.num_plain < RECORD_AFTER:
            self.num_plain += 1
            return None
        self.step = None  # before the next is made: it holds memory
        self.step = StaticStep(self.model, cache, self.records)
        return self.step
