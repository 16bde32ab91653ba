"""Recordings of the later models: full passes, left-padded batches, cached decoding, losses.

The arrays of one case share a prefix: `full_ids` and `full_logits`, `dec_ids` and
`dec_step_logits`, ...; GLM-130B and CodeGeeX files hold one case without a prefix. Padding rows of
a batch do not count: what they give is up to each implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from openglm.language_model import LanguageModel

Pair = tuple[str, NDArray[Any], NDArray[Any]]
MASKED = "attention_mask_true_is_masked"
RELEASED, EXACT = "_rope_fp16_angles", "_rope_fp32_angles"


class FamilyRecording:
    """The arrays of one golden, and how to reproduce each kind."""

    def __init__(self, model: LanguageModel, arrays: dict[str, NDArray[Any]]) -> None:
        self.model = model
        self.arrays = arrays

    def pairs(self) -> Iterator[Pair]:
        """(name, ours, recorded) for all that can be compared."""
        if "input_ids" in self.arrays:
            yield from self._single()
        for prefix in sorted(n.removesuffix("ids") for n in self.arrays if n.endswith("_ids")):
            if prefix + "logits" in self.arrays and prefix != "input_":
                yield from self._full(prefix)
            if prefix + "step_logits" in self.arrays:
                yield from self._decode(prefix)
        if "chunk_b_logits" in self.arrays:
            yield from self._chunks()
        if "loss_value" in self.arrays:
            yield from self._loss()

    def tensor(self, name: str) -> Tensor:
        """An array as a tensor."""
        return torch.from_numpy(np.ascontiguousarray(self.arrays[name]))

    def _single(self) -> Iterator[Pair]:
        """GLM-130B and CodeGeeX: positions and mask are recorded, or plain."""
        ids = self.tensor("input_ids")
        positions = self.tensor("position_ids") if "position_ids" in self.arrays else None
        mask = ~self.tensor(MASKED)[:, 0] if MASKED in self.arrays else None
        exact = self.model.config.rotary_compute == "float32"
        suffix = EXACT if exact else RELEASED
        for name in ("logits", f"logits{suffix}"):
            if name in self.arrays:
                logits = self.model.logits(ids, positions, mask=mask)
                yield name, logits.cpu().numpy(), self.arrays[name]
        if "cached_logits" in self.arrays:
            start = int(self.arrays["cached_start"])
            yield "cached_logits", self._steps(ids, start), self.arrays["cached_logits"]
        name = f"step_logits{suffix}"
        if name in self.arrays and self.model.token_ids:
            recorded = self.arrays[name]
            ours = self._steps(ids, int(self.arrays["context_length"]))[0, : len(recorded)]
            yield name, ours, recorded

    def _full(self, prefix: str) -> Iterator[Pair]:
        ids = self.tensor(prefix + "ids")
        name = prefix + "logits"
        positions = self._optional(prefix + "position_ids")
        padding = self._optional(prefix + "attention_mask")
        blocks = None
        if positions is not None and positions.dim() == 3:
            positions, blocks = positions[:, 0], positions[:, 1]
        if padding is not None and padding.dim() == 4:
            mask: Tensor | None = ~padding[:, 0]
            logits = self.model.logits(ids, positions, blocks, mask).cpu().numpy()
            yield name, logits, self.arrays[name]
        elif padding is not None:
            real = padding.bool()
            causal = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
            mask = causal & real[:, None, :] | ~real[:, :, None]
            logits = self.model.logits(ids, positions, blocks, mask).cpu().numpy()
            yield name, logits[real.numpy()], self.arrays[name][real.numpy()]
        else:
            logits = self.model.logits(ids, positions, blocks).cpu().numpy()
            yield name, logits, self.arrays[name]

    def _decode(self, prefix: str) -> Iterator[Pair]:
        name = prefix + "step_logits"
        recorded = self.arrays[name]
        ours = self._steps(self.tensor(prefix + "ids"), int(self.arrays[prefix + "n_prompt"]))
        yield name, ours[:, : recorded.shape[1]], recorded

    def _chunks(self) -> Iterator[Pair]:
        first, second = self.tensor("chunk_a"), self.tensor("chunk_b")
        cache = self.model.new_cache(len(first), first.shape[1] + second.shape[1])
        self.model.logits(first, cache=cache)
        logits = self.model.logits(second, cache=cache)
        yield "chunk_b_logits", logits.cpu().numpy(), self.arrays["chunk_b_logits"]

    def _loss(self) -> Iterator[Pair]:
        """Mean cross entropy of each token's successor, -100 = ignored."""
        logits = self.model.logits(self.tensor("loss_ids")).cpu()
        labels = self.tensor("loss_labels")[:, 1:].flatten()
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), labels, ignore_index=-100)
        yield "loss_value", loss.numpy(), self.arrays["loss_value"]

    def _steps(self, ids: Tensor, num_prompt: int) -> NDArray[Any]:
        """(B, 1 + steps, V): last logits of the prompt, then of each token through the cache."""
        cache = self.model.new_cache(*ids.shape)
        rows = [self.model.logits(ids[:, :num_prompt], cache=cache)[:, -1]]
        for place in range(num_prompt, ids.shape[1]):
            rows.append(self.model.logits(ids[:, place : place + 1], cache=cache)[:, -1])
        return torch.stack(rows, dim=1).cpu().numpy()

    def _optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if name in self.arrays else None
