"""Official quantized weights in the packed layout: the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch

from openglm.checkpoints import load_random
from openglm.config import ModelConfig
from openglm.language_model import LanguageModel
from openglm.quant.linear import RowwiseLinear
from openglm.quant.packed_rows import PackedRowsLinear, use_packed_rows
from openglm.scheme import Scheme

CONFIG = ModelConfig(
    vocab_size=60,
    hidden_size=48,
    num_layers=2,
    num_attention_heads=4,
    max_position_embeddings=40,
    intermediate_size=72,
    activation="gelu_erf",
)


@pytest.mark.parametrize("bits", [4, 8])
def test_logits_stay(bits: int) -> None:
    """An integer off by the zero point, or a layer left behind, would garble a model on a GPU.

    In float32 both products have the same float weights, up to one rounding of scale times integer.
    """
    network = load_random(CONFIG, scheme=Scheme(bits=bits), seed=1)
    packed = use_packed_rows(copy.deepcopy(network))
    kinds = [type(module) for module in packed.modules()]
    assert RowwiseLinear not in kinds
    assert kinds.count(PackedRowsLinear) == 2 * 6
    ids = torch.arange(20).view(2, 10)
    expected, found = (
        LanguageModel(each, None, "random").logits(ids) for each in (network, packed)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6 * float(expected.abs().max()))
