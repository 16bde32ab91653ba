"""Claim: on a CPU, attention as two matrix products beats torch's fused kernel in bf16 training.

Freed memory is kept, as in training; without that the plain kernel pays for page faults.
"""

from typing import Any

import torch

from benchmarks.record import seconds, spread
from openglm.kernels.attention import fused, reference
from openglm.train.allocator import keep_freed_memory

SHAPES = ((16, 4, 128, 64), (16, 4, 288, 64), (4, 16, 512, 64), (1, 32, 1024, 64))


def measure() -> dict[str, Any]:
    """Forward and backward time of both kernels on (B, H, T, D)."""
    keep_freed_memory()
    found = []
    for shape in SHAPES:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape).to(dtype).requires_grad_()
            bias = torch.zeros(1, 1, shape[2], shape[2])

            def work(kernel: Any, x: Any = x, bias: Any = bias) -> None:
                kernel(x, x, x, bias, 0.0).sum().backward()

            plain = spread(seconds(lambda: work(reference), 15, 3))
            torch_own = spread(seconds(lambda: work(fused), 15, 3))
            found.append(
                {
                    "shape_BHTD": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "plain_s": plain,
                    "torch_fused_s": torch_own,
                    "ratio": torch_own["median"] / plain["median"],
                }
            )
    return {"unit": "seconds, forward and backward; ratio = fused / plain", "results": found}
