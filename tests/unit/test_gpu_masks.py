"""Masks on the GPU: blocks and torch's own causal kernel show what the dense mask shows."""

from __future__ import annotations

import pytest
import torch

from openglm.kernels.attention import attention, causal_attention
from openglm.kernels.gpu import prefix_attention
from openglm.nn.context import BLOCKS_FROM, DenseContext
from openglm.nn.masks import MaskSpec

SHAPES = [
    (300, 300, [0, 0]),
    (300, 300, [140, 256]),
    (100, 400, [0, 310, 400]),
    (5, 130, [1]),
    (257, 384, [384, 128]),
]
"""T, S and prefix lengths: causal, prefixes inside and at the end of blocks, tails, cached keys."""
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlexAttention step by step: compiling takes minutes on a CPU."""
    from torch.nn.attention import flex_attention

    monkeypatch.setattr(flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    monkeypatch.setattr(prefix_attention, "kernel", lambda: flex_attention.flex_attention)


def _tensors(num_queries: int, num_keys: int, batch_size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(num_keys)
    shapes = ((batch_size, n, h, 16) for n, h in ((num_queries, 4), (num_keys, 2), (num_keys, 2)))
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize(("num_queries", "num_keys", "lengths"), SHAPES)
def test_attention_by_blocks_is_that_by_bias(
    num_queries: int, num_keys: int, lengths: list[int], uncompiled: None
) -> None:
    """A context that does not see itself whole, or an answer that sees ahead."""
    visible = torch.tensor(lengths)
    tensors = _tensors(num_queries, num_keys, len(lengths))
    mask = prefix_attention.block_mask(visible, num_queries, num_keys)
    mixed = prefix_attention.prefix_attention(*tensors, mask)
    bias = MaskSpec.prefix(visible).bias(num_queries, num_keys, CPU)
    torch.testing.assert_close(mixed, attention(*tensors, bias, 0.0), rtol=0, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("num_queries", "num_keys", "lengths"), SHAPES)
def test_compiled_attention_by_blocks_is_that_by_bias(
    num_queries: int, num_keys: int, lengths: list[int]
) -> None:
    """The compiled kernel takes blocks at their word."""
    visible = torch.tensor(lengths)
    tensors = [x.bfloat16() for x in _tensors(num_queries, num_keys, len(lengths))]
    mask = prefix_attention.block_mask(visible.to(GPU), num_queries, num_keys)
    mixed = prefix_attention.prefix_attention(*(x.to(GPU) for x in tensors), mask)
    bias = MaskSpec.prefix(visible).bias(num_queries, num_keys, CPU)
    expected = attention(*(x.float() for x in tensors), bias, 0.0)
    # bf16 rounds probabilities and the result to 8 bits; values are up to 4.
    torch.testing.assert_close(mixed.float().cpu(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize(("num_queries", "num_keys", "lengths"), SHAPES)
def test_blocks_are_whole_partial_or_left_out(
    num_queries: int, num_keys: int, lengths: list[int]
) -> None:
    """The compiled kernel asks no mask inside of whole blocks, and never reads those left out."""
    visible, size = torch.tensor(lengths), prefix_attention.BLOCK
    mask = prefix_attention.block_mask(visible, num_queries, num_keys)
    allowed = MaskSpec.prefix(visible).dense(num_queries, num_keys, CPU)
    for row, dense in enumerate(allowed):
        for i, rows in enumerate(dense.split(size)):
            blocks = rows.split(size, dim=1)
            whole = {j for j, block in enumerate(blocks) if block.all() and block.shape[1] == size}
            shown = {j for j, block in enumerate(blocks) if block.any()}
            full, partial = (
                set(indices[row, 0, i, : int(counts[row, 0, i])].tolist())
                for indices, counts in (
                    (mask.full_kv_indices, mask.full_kv_num_blocks),
                    (mask.kv_indices, mask.kv_num_blocks),
                )
            )
            assert (full, partial) == (whole, shown - whole)


def test_causal_attention_is_that_by_bias() -> None:
    """Prompts of causal models take this path on a GPU."""
    tensors = _tensors(37, 37, 2)
    bias = MaskSpec.causal().bias(37, 37, CPU)
    expected = attention(*tensors, bias, 0.0)
    torch.testing.assert_close(causal_attention(*tensors, 0.0), expected, rtol=0, atol=2e-6)


def test_the_way_of_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A (T, S) tensor on a GPU where none is needed, or a kernel that cannot do what is asked."""
    monkeypatch.setattr("openglm.nn.context.missing", lambda device: "")
    prefix = MaskSpec.prefix(torch.tensor([3]))
    causal, side = MaskSpec.causal(), int(BLOCKS_FROM**0.5)

    def way(mask: MaskSpec, queries: int, keys: int, device: torch.device = GPU, p: float = 0.0):
        return DenseContext(mask, queries).way(device, 1, keys, p)

    assert way(causal, side, side, CPU) == "bias"
    assert way(causal, 8, 8) == way(causal, 8, 8, p=0.1) == "causal"
    assert way(causal, 8, 9) == way(prefix, 8, 8) == "bias"
    assert way(causal, side, side + 1) == way(prefix, side, side) == "blocks"
    assert way(prefix, side, side, p=0.1) == "bias"
    assert way(MaskSpec.explicit(torch.ones(1, 1, 1).bool()), side, side) == "bias"
    assert way(causal, 1, BLOCKS_FROM) == "bias"  # which is None: all is visible
    monkeypatch.setattr("openglm.nn.context.missing", lambda device: "Triton is not installed")
    assert way(prefix, side, side) == "bias"


def test_a_network_attends_by_blocks(uncompiled: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trained prefix, cached keys and every layer must arrive in the same mask."""
    import openglm
    from openglm.nn.cache import Prefix

    model = openglm.load("mini")
    config, generator = model.config, torch.Generator().manual_seed(0)
    shape = (config.num_layers, 5, config.kv_heads, config.head_dim)
    keys, values = torch.randn(2, *shape, generator=generator)
    monkeypatch.setattr(model.network, "prefix", Prefix(keys, values))
    ids = torch.randint(0, 1000, (2, 40), generator=generator)

    def logits() -> list[torch.Tensor]:
        cache = model.new_cache(2, 40)
        lengths = torch.tensor([10, 25])
        parts = (ids[:, :30], ids[:, 30:])
        return [model.logits(part, mask=lengths, cache=cache) for part in parts]

    expected = logits()
    monkeypatch.setattr(DenseContext, "way", lambda *_: "blocks")
    for found, wanted in zip(logits(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)  # of logits up to 20
