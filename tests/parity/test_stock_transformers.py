"""What `glm convert --to hf` writes is read by stock transformers, with the same logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import openglm
from openglm.checkpoints import load_checkpoint, open_checkpoint, save, save_checkpoint
from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.beam_rules import TRANSFORMERS
from openglm.engine.decoder import Decoder

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


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "length_penalty": 1.0},
        {"num_beams": 4, "length_penalty": 0.6, "no_repeat_ngram_size": 2},
        {"num_beams": 2, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    ],
)
def test_beams_of_glm4(options):
    """Beam search of GLM-4 ranks by other lengths, or bans other n-grams, than transformers."""
    folder = GOLDENS / "glm4_9b_hf_tiny"
    stock = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours = load_checkpoint(folder).model
    generator = torch.Generator().manual_seed(0)
    vocab_size, ended = ours.config.vocab_size, 0
    for length in range(3, 15):
        ids = torch.randint(0, vocab_size, (1, length), generator=generator)
        asked = {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
        greedy = stock.generate(ids, max_new_tokens=6, **asked)
        ends = greedy[0, [-1, -3]].tolist()  # tokens that the model does write
        written = stock.generate(ids, max_new_tokens=8, eos_token_id=ends, **asked, **options)
        theirs = written[0, length:].tolist()
        settings = BeamSettings(max_tokens=8, end_ids=ends, rule=TRANSFORMERS, **options)
        decoder = Decoder(ours, ids[:, :-1], 8, is_causal=True)
        best = beam_search(decoder, ids.tolist(), [length - 2], settings, counts_on=True)[0][0]
        if theirs[-1] in ends:
            ended += 1
            theirs = theirs[: next(i for i, token in enumerate(theirs) if token in ends)]
        assert best.tokens == theirs
    assert ended > 2


def test_an_exported_model_in_shards(tmp_path, monkeypatch):
    """Every model above 4 GiB fails to load in transformers: its index says too little."""
    monkeypatch.setattr(save, "SHARD_BYTES", 100_000)
    source = open_checkpoint(GOLDENS / "glm4_9b_hf_tiny")
    save_checkpoint(tmp_path / "hf", source.config, source, "hf", token_ids=source.token_ids)
    assert len(list((tmp_path / "hf").glob("*.safetensors"))) > 1
    stock = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    ids = torch.arange(12)[None]
    ours = openglm.load(GOLDENS / "glm4_9b_hf_tiny", dtype="float32", device="cpu").logits(ids)
    with torch.no_grad():
        assert_close(stock(ids).logits, ours, atol=1e-5, rtol=0)
