"""Logits, losses and cached decoding against the recorded outputs of the official GLM code.

The tolerance of 1e-5 is the accumulation error of two float32 implementations on logits of
size about 10; the reference itself differs by 4e-6 between cached and full computation.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import openglm
from helpers_models import GLM_GOLDENS, allowed_matrix
from openglm.checkpoints import load_checkpoint
from openglm.data.batches import Batch
from openglm.train.loss import blank_loss

ATOL = 1e-5
CHECKPOINTS = {
    "hf": "logits_hf",
    "hf_prefixed": "logits_hf",
    "megatron": "logits_megatron",
    "megatron_MP2": "logits_megatron",
}
WITH_SEP = ["full_mask_2blanks", "full_gmask", "full_mask_and_gmask", "batch_two_seps"]
WITH_LOSS = ["full_mask_2blanks", "full_gmask", "batch_two_seps"]
DECODED = ["decode_mask_2blanks", "decode_gmask"]


def close(actual, expected):
    assert_close(actual, expected.to(actual.dtype), atol=ATOL, rtol=0)


@pytest.mark.parametrize("folder", CHECKPOINTS)
@pytest.mark.parametrize("name", WITH_SEP)
def test_logits_with_context_lengths(folder, name, checkpoint, golden):
    """Official weights give other numbers than in the official code."""
    recorded = golden(name)
    positions, blocks = recorded["position_ids"].unbind(1)
    logits = checkpoint(folder).logits(recorded["input_ids"], positions, blocks, recorded["sep"])
    close(logits, recorded[CHECKPOINTS[folder]])


@pytest.mark.parametrize("folder", CHECKPOINTS)
@pytest.mark.parametrize("name", WITH_SEP)
def test_logits_with_the_same_mask_written_out(folder, name, checkpoint, golden):
    """A boolean mask means something else than the context lengths it spells out."""
    recorded = golden(name)
    positions, blocks = recorded["position_ids"].unbind(1)
    length = positions.shape[1]
    mask = torch.stack([allowed_matrix(int(s), length, length) for s in recorded["sep"]])
    logits = checkpoint(folder).logits(recorded["input_ids"], positions, blocks, mask)
    close(logits, recorded[CHECKPOINTS[folder]])


@pytest.mark.parametrize("folder", CHECKPOINTS)
def test_logits_with_hidden_padding(folder, checkpoint, golden):
    """The masks that Hugging Face generation builds are applied inside out or to wrong places."""
    recorded = golden("full_explicit_mask")
    positions, blocks = recorded["position_ids"].unbind(1)
    mask = recorded["attention_mask"][:, 0].bool()
    logits = checkpoint(folder).logits(recorded["input_ids"], positions, blocks, mask)
    close(logits, recorded[CHECKPOINTS[folder]])


@pytest.mark.parametrize("folder", CHECKPOINTS)
@pytest.mark.parametrize("name", DECODED)
def test_decoding_one_token_at_a_time(folder, name, checkpoint, golden):
    """Generation with a cache sees other keys and values than the official memory holds."""
    recorded = golden(name)
    model = checkpoint(folder)
    kind = CHECKPOINTS[folder]
    context, tokens = recorded["context_ids"], recorded["step_tokens"]
    cache = model.new_cache(1, context.shape[1] + len(tokens))
    lengths = torch.tensor([context.shape[1]])
    close(model.logits(context, mask=lengths, cache=cache), recorded[f"context_{kind}"])
    steps = zip(
        tokens,
        recorded["step_position_ids"],
        recorded["step_block_position_ids"],
        recorded[f"step_{kind}"],
        strict=True,
    )
    for token, position, block, expected in steps:
        row = (value.view(1, 1) for value in (token, position, block))
        close(model.logits(*row, cache=cache)[0, 0], expected)
    assert cache.length == int(recorded["mems_shape"][2])


@pytest.mark.parametrize("name", DECODED)
def test_decoding_equals_one_full_pass(name, checkpoint, golden):
    """The recorded steps are not what a full pass gives, so cache and masks disagree."""
    recorded = golden(name)
    context = recorded["context_ids"]
    length = context.shape[1]
    ids = torch.cat([context, recorded["step_tokens"][None]], dim=1)
    positions = torch.cat([torch.arange(length), recorded["step_position_ids"]])[None]
    blocks = torch.zeros_like(positions)
    blocks[0, length:] = recorded["step_block_position_ids"]
    logits = checkpoint("megatron").logits(ids, positions, blocks, torch.tensor([length]))
    close(logits[0, length:], recorded["step_logits_megatron"])


def batch_of(recorded):
    arrays = {key: value.numpy() for key, value in recorded.items()}
    return Batch(
        arrays["input_ids"],
        arrays["targets"],
        arrays["loss_mask"],
        arrays["position_ids"][:, 0],
        arrays["position_ids"][:, 1],
        arrays["sep"],
    )


def network(folder):
    """In plain torch, as it is trained."""
    return load_checkpoint(GLM_GOLDENS / folder, torch.float32).model


@pytest.mark.parametrize("folder", ["megatron", "megatron_MP2"])
@pytest.mark.parametrize("name", WITH_LOSS)
def test_training_loss(folder, name, golden):
    """Training minimises another number than the official code: masking or averaging differs."""
    recorded = golden(name)
    loss = blank_loss(network(folder), batch_of(recorded))
    close(loss, recorded["loss_megatron"])


def test_label_smoothed_loss(golden):
    """Fine-tuning with label smoothing weighs the uniform part differently."""
    recorded = golden("full_mask_2blanks")
    loss = blank_loss(network("megatron"), batch_of(recorded), label_smoothing=0.1)
    close(loss, recorded["loss_megatron_label_smoothing_0p1"])


def test_loss_ignores_what_is_not_in_a_blank(golden):
    """Targets outside the blanks leak into the loss."""
    recorded = golden("batch_two_seps")
    outside = np.where(recorded["loss_mask"].numpy() == 1, recorded["targets"].numpy(), 7)
    changed = recorded | {"targets": torch.from_numpy(outside)}
    model = network("megatron")
    assert blank_loss(model, batch_of(changed)) == blank_loss(model, batch_of(recorded))


def test_activation_follows_the_source_of_the_weights(checkpoint):
    """Hugging Face files run with Megatron's GELU or the reverse: logits off by 1.6e-3."""
    found = {name: checkpoint(name).config.activation for name in CHECKPOINTS}
    expected = {n: "gelu_erf" if n.startswith("hf") else "gelu_tanh" for n in CHECKPOINTS}
    assert found == expected


@pytest.mark.parametrize("folder", ["megatron", "megatron_MP2"])
def test_head_count_comes_from_the_description_beside_the_folder(
    folder, tmp_path: Path, golden, checkpoint
):
    """Megatron files, which do not say their head count, run with a made-up one."""
    assert checkpoint(folder).config.num_attention_heads == 4
    shutil.copytree(GLM_GOLDENS / folder, tmp_path / folder)
    (tmp_path / "meta.json").write_text('{"num_attention_heads": 2}', encoding="utf-8")
    other = openglm.load(tmp_path / folder, dtype="float32", device="cpu")
    assert other.config.num_attention_heads == 2
    recorded = golden("full_gmask")
    positions, blocks = recorded["position_ids"].unbind(1)
    logits = other.logits(recorded["input_ids"], positions, blocks, recorded["sep"])
    assert (logits - recorded["logits_megatron"]).abs().max() > 1e-2
