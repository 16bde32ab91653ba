"""The loss of blank infilling: cross entropy on the tokens of the blanks only.

Two things make it cheap. Only tokens with a loss go through the output head. And the head is never
applied to all of them at once: `HeadLoss` goes over a few hundred tokens at a time and turns their
logits into gradients while they are still in the processor's cache, so that the (N, V) matrix of
logits, by far the largest tensor of a small model, never exists.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from openglm.data.batches import Batch
from openglm.model import Transformer
from openglm.nn.cache import Prefix
from openglm.nn.context import DenseContext
from openglm.nn.masks import MaskSpec

CHUNK_TOKENS = 256
"""Tokens per piece: 13 MB of float32 logits at V = 12,800, which a last-level cache holds."""


def blank_loss(
    model: Transformer, batch: Batch, label_smoothing: float = 0.0, prefix: Prefix | None = None
) -> Tensor:
    """Mean cross entropy over the loss-mask tokens of a batch, as a float32 scalar.

    Label smoothing e gives (1 - e) * CE + e * mean over the vocabulary of -log p (GLM's
    fine-tuning loss). A prefix stands in front of every row.
    """
    device = model.device
    tensors = {
        name: torch.from_numpy(getattr(batch, name)).to(device)
        for name in ("input_ids", "position_ids", "block_position_ids", "context_lengths")
    }
    mask = MaskSpec.prefix(tensors["context_lengths"])
    hidden = model.run(
        tensors["input_ids"],
        tensors["position_ids"],
        tensors["block_position_ids"],
        DenseContext(mask, batch.input_ids.shape[1], prefix=prefix),
    )  # (B, T, C)
    scored = torch.from_numpy(batch.loss_mask.astype(bool)).to(device)
    targets = torch.from_numpy(batch.targets).to(device)[scored]  # (N,)
    loss: Tensor = HeadLoss.apply(hidden[scored], model.output_weight, targets, label_smoothing)  # type: ignore[no-untyped-call]
    return loss


class HeadLoss(torch.autograd.Function):
    """mean over tokens of cross_entropy(hidden @ weight^T, targets), in pieces.

    The gradients are computed in the forward pass, where the logits are at hand; backward only
    scales them. Under autocast the products run in its dtype, the softmax always in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, label_smoothing: float
    ) -> Tensor:
        """(N, C), (V, C), (N,) int64 -> scalar float32."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        with torch.autocast(kind, enabled=False):
            # Whole pieces only, so that the products always have the same shape.
            missing = -len(targets) % CHUNK_TOKENS
            h, w = pad(hidden.to(dtype), (0, 0, 0, missing)), weight.to(dtype)
            padded_targets = pad(targets, (0, missing))
            real = pad(torch.ones_like(targets, dtype=torch.float32), (0, missing))[:, None]
            wants_hidden, wants_weight = ctx.needs_input_grad[:2]
            grad_hidden = torch.empty_like(h) if wants_hidden else None
            grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            for start in range(0, len(h), CHUNK_TOKENS):
                piece = slice(start, start + CHUNK_TOKENS)
                logits = torch.matmul(h[piece], w.T).float()  # (n, V)
                log_p = torch.log_softmax(logits, dim=-1)
                wanted = padded_targets[piece, None]
                picked = log_p.gather(1, wanted)
                total -= (1 - label_smoothing) * (picked * real[piece]).sum()
                if label_smoothing:
                    total -= (
                        label_smoothing * (log_p.mean(dim=-1, keepdim=True) * real[piece]).sum()
                    )
                if wants_hidden or wants_weight:
                    grad = log_p.exp_()  # d CE / d logits = p - target distribution
                    if label_smoothing:
                        grad -= label_smoothing / log_p.shape[1]
                    grad.scatter_add_(1, wanted, torch.full_like(picked, label_smoothing - 1))
                    grad_low = (grad * real[piece]).to(dtype)
                    if grad_hidden is not None:
                        grad_hidden[piece] = torch.matmul(grad_low, w)
                    if grad_weight is not None:
                        grad_weight += torch.matmul(grad_low.T, h[piece])
        ctx.save_for_backward(
            None if grad_hidden is None else grad_hidden[: len(targets)], grad_weight
        )
        ctx.count = max(1, len(targets))  # no target: a loss of 0, as officially
        ctx.dtypes = hidden.dtype, weight.dtype
        loss: Tensor = total / ctx.count
        return loss

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scales the gradients of the forward pass."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grad_outputs[0] / ctx.count
        hidden_dtype, weight_dtype = ctx.dtypes
        return (
            None if grad_hidden is None else (grad_hidden.float() * scale).to(hidden_dtype),
            None if grad_weight is None else (grad_weight * scale).to(weight_dtype),
            None,
            None,
        )
