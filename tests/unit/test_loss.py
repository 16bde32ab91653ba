"""The piecewise loss equals torch's cross entropy on the full logits."""

import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from openglm.train import loss
from openglm.train.loss import HeadLoss


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("count", [1, 5, 12])
def test_head_loss_equals_cross_entropy(
    count: int, label_smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong piece boundary or gradient would train a worse model without any error."""
    monkeypatch.setattr(loss, "CHUNK_TOKENS", 5)
    torch.manual_seed(0)
    hidden = torch.randn(count, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(11, 8, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 11, (count,))
    expected = cross_entropy(linear(hidden, weight), targets, label_smoothing=label_smoothing)
    wanted = torch.autograd.grad(expected * 3, (hidden, weight))
    found = HeadLoss.apply(hidden, weight, targets, label_smoothing)
    torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=0)
    gradients = torch.autograd.grad(found * 3, (hidden, weight))
    for ours, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)


def test_head_loss_under_autocast_keeps_a_float32_loss() -> None:
    """A bf16 loss would have two digits; a bf16 softmax would lose rare tokens."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 32, requires_grad=True), torch.randn(50, 32)
    targets = torch.randint(0, 50, (300,))
    with torch.autocast("cpu", torch.bfloat16):
        found = HeadLoss.apply(hidden, weight.requires_grad_(), targets, 0.0)
    assert found.dtype == torch.float32
    found.backward()
    expected = cross_entropy(linear(hidden, weight), targets)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=0)
    assert hidden.grad is not None
    assert hidden.grad.dtype == torch.float32


def test_a_batch_without_targets_has_a_loss_of_zero() -> None:
    """0 / 0 would be NaN and stop the run; the official code does not divide either."""
    hidden = torch.randn(0, 8, requires_grad=True)
    weight = torch.randn(11, 8, requires_grad=True)
    found = HeadLoss.apply(hidden, weight, torch.zeros(0, dtype=torch.int64), 0.0)
    found.backward()
    assert found.item() == 0.0
    assert weight.grad is not None
    assert not weight.grad.any()
