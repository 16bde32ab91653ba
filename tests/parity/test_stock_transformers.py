"""What `glm convert --to hf` writes is read by stock transformers, with the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import openglm
from openglm.checkpoints import load_checkpoint, save_checkpoint

transformers = pytest.importorskip("transformers")
GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"


@pytest.mark.parametrize(
    ("name", "exact_rotary", "model_class"),
    [
        ("chatglm3_32k_tiny", False, "GlmForCausalLM"),
        ("chatglm2_tiny", True, "GlmForCausalLM"),
        ("glm4_9b_hf_tiny", False, "GlmForCausalLM"),
        ("glm4_0414_hf_tiny", False, "Glm4ForCausalLM"),
    ],
)
def test_exported_models(name, exact_rotary, model_class, tmp_path):
    """A model that users take elsewhere answers otherwise there, or does not load."""
    loaded = load_checkpoint(GOLDENS / name, exact_rotary=exact_rotary)
    weights = loaded.model.state_dict()
    save_checkpoint(tmp_path / "hf", loaded.config, weights, "hf", token_ids=loaded.token_ids)
    stock = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "hf", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    assert type(stock).__name__ == model_class
    with np.load(GOLDENS / name / "cases.npz") as file:
        ids = torch.from_numpy(file["full_ids"])
    with torch.no_grad():
        theirs = stock(ids).logits
    ours = openglm.load(tmp_path / "hf", dtype="float32", device="cpu").logits(ids)
    assert_close(theirs, ours, atol=1e-5, rtol=0)
