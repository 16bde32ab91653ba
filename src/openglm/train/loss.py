"""The loss of blank infilling: cross entropy on the tokens of the blanks only."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from openglm.data.batches import Batch
from openglm.model.transformer import Transformer
from openglm.nn.masks import MaskSpec


def blank_loss(model: Transformer, batch: Batch, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over the loss-mask tokens of a batch, as a float32 scalar.

    Only those positions go through the output head: with a few percent to a half of the tokens
    in blanks, that saves most of the head's work. Label smoothing e gives
    (1 - e) * CE + e * mean over the vocabulary of -log p (GLM's fine-tuning loss).
    """
    device = model.word_embeddings.weight.device
    tensors = {
        name: torch.from_numpy(getattr(batch, name)).to(device)
        for name in ("input_ids", "position_ids", "block_position_ids", "context_lengths")
    }
    hidden = model(
        tensors["input_ids"],
        tensors["position_ids"],
        tensors["block_position_ids"],
        MaskSpec.prefix(tensors["context_lengths"]),
    )  # (B, T, C)
    scored = torch.from_numpy(batch.loss_mask.astype(bool)).to(device)
    targets = torch.from_numpy(batch.targets).to(device)[scored]  # (N,)
    logits = model.logits(hidden[scored])  # (N, V)
    return cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
