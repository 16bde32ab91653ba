"""The transformers classes of `openglm.hf` against recordings of the official code.

Tolerance as in test_family_logits.py: 1e-5 (DESIGN section 6).
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("transformers")
from transformers import AutoModel, AutoModelForCausalLM

import openglm.hf
from openglm.engine.implied import implied_positions

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
PREFIX = ["chatglm6b_tiny", "chatglm6b_28layers"]
CAUSAL = ["chatglm2_tiny", "chatglm3_32k_tiny"]


@cache
def load(name):
    return AutoModel.from_pretrained(GOLDENS / name, trust_remote_code=True).float().eval()


@cache
def arrays(name):
    with np.load(GOLDENS / name / "cases.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def close(actual, expected):
    assert_close(actual, expected.float(), atol=1e-5, rtol=0)


def test_the_classes():
    """Old scripts get a class of transformers itself, or code from the folder."""
    assert openglm.hf.__all__ == ["register"]
    for name in (*PREFIX, *CAUSAL):
        assert type(load(name)).__module__ == "openglm.hf.modeling"


@pytest.mark.parametrize("name", PREFIX)
@pytest.mark.parametrize("case", ["gmask", "mask", "both"])
def test_chatglm6b(name, case):
    """The official module tree computes something else, or in another order."""
    recorded, model = arrays(name), load(name)
    ids = recorded[f"{case}_ids"]
    with torch.no_grad():
        close(model(ids).logits, recorded[f"{case}_logits"])
        given = (recorded[f"{case}_position_ids"], recorded[f"{case}_attention_mask"])
        close(model(ids, *given).logits, recorded[f"{case}_logits"])


@pytest.mark.parametrize("name", CAUSAL)
def test_later_models(name):
    """A fused layer is cut into the wrong parts."""
    recorded, model = arrays(name), load(name)
    with torch.no_grad():
        close(model(recorded["full_ids"]).logits, recorded["full_logits"])
        offset = model(recorded["offset_ids"], recorded["offset_position_ids"])
    close(offset.logits, recorded["offset_logits"])


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
def test_hidden_states(name):
    """Scripts that take sentence vectors get those of another layer."""
    recorded, model = arrays(name), load(name)
    case = "gmask" if name in PREFIX else "full"
    with torch.no_grad():
        states = model(recorded[f"{case}_ids"], output_hidden_states=True).hidden_states
    # Between norms these numbers reach 20, where float32 itself is no finer than 2e-6.
    assert_close(torch.stack(states), recorded[f"{case}_hidden"], atol=1e-5, rtol=1e-5)
    assert all(not layer._forward_hooks for layer in model.modules())


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
def test_left_padding_from_ids_and_mask(name):
    """A short prompt in a batch is read otherwise than alone."""
    recorded, model = arrays(name), load(name)
    ids, mask = recorded["leftpad_ids"], recorded["leftpad_attention_mask"]
    real = (ids != 3).cumsum(1) > 0 if name in PREFIX else mask.bool()
    with torch.no_grad():
        close(model(ids, attention_mask=real.long()).logits[real], recorded["leftpad_logits"][real])
        given = model(ids, recorded["leftpad_position_ids"], mask).logits
    close(given[real], recorded["leftpad_logits"][real])


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
def test_positions_of_padded_rows(name):
    """Padding is counted as text."""
    recorded, model = arrays(name), load(name)
    ids, mask = recorded["leftpad_ids"], recorded["leftpad_attention_mask"]
    real = (ids != 3).cumsum(1) > 0 if name in PREFIX else mask.bool()
    found = implied_positions(model.network.config, model.token_ids, ids, real)
    expected = recorded["leftpad_position_ids"]
    if name in PREFIX:
        found = torch.stack(found, dim=1)
        assert torch.equal(found, expected)
    else:
        assert torch.equal(found[0], expected)


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
def test_loss(name):
    """The loss is not shifted by one, or counts what is marked -100."""
    recorded, model = arrays(name), load(name)
    loss = model(recorded["loss_ids"], labels=recorded["loss_labels"]).loss
    assert_close(loss.item(), float(recorded["loss_value"]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
@pytest.mark.parametrize("use_cache", [True, False])
def test_greedy_generation(name, use_cache):
    """`generate` takes another path than the official one, or another one without the cache."""
    recorded, model = arrays(name), load(name)
    expected = recorded["greedy_ids"]
    found = model.generate(
        recorded["greedy_prompt"],
        max_length=expected.shape[1],
        do_sample=False,
        use_cache=use_cache,
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
@pytest.mark.parametrize("as_official", [True, False])
def test_greedy_generation_of_a_padded_batch(name, as_official):
    """The shorter prompts of a batch are continued otherwise than alone."""
    recorded, model = arrays(name), load(name)
    prompt, expected = recorded["greedy_batch_prompt"], recorded["greedy_batch_ids"]
    mask, positions = recorded["leftpad_attention_mask"], recorded["leftpad_position_ids"]
    assert torch.equal(prompt, recorded["leftpad_ids"])
    real = ((prompt != 3).cumsum(1) > 0).long() if name in PREFIX else mask
    given = {"attention_mask": mask, "position_ids": positions}
    found = model.generate(
        input_ids=prompt,
        max_length=expected.shape[1],
        do_sample=False,
        **(given if as_official else {"attention_mask": real}),
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", [*PREFIX, *CAUSAL])
def test_streaming(name):
    """`stream_generate` yields another number of tokens than the official one, or others."""
    recorded, model = arrays(name), load(name)
    rows = list(
        model.stream_generate(
            recorded["greedy_prompt"], max_length=recorded["greedy_ids"].shape[1], do_sample=False
        )
    )
    assert torch.equal(rows[-1], recorded["stream_last"])
    lengths = [row.shape[1] for row in rows]
    start = recorded["greedy_prompt"].shape[1] + 1
    assert lengths == list(range(start, start + len(rows)))


@pytest.mark.parametrize("name", CAUSAL)
def test_chunks_on_a_cache(name):
    """Several tokens on top of a cache see each other wrongly."""
    recorded, model = arrays(name), load(name)
    with torch.no_grad():
        first = model(recorded["chunk_a"], use_cache=True)
        second = model(recorded["chunk_b"], past_key_values=first.past_key_values)
    close(second.logits, recorded["chunk_b_logits"])


@pytest.mark.parametrize("case", ["dec_gmask", "dec_mask"])
def test_decoding_by_hand_of_chatglm6b(case):
    """A script that feeds tokens itself gets positions that do not count on."""
    recorded, model = arrays(PREFIX[0]), load(PREFIX[0])
    ids, start = recorded[f"{case}_ids"], int(recorded[f"{case}_n_prompt"])
    with torch.no_grad():
        out = model(ids[:, :start], use_cache=True)
        rows = [out.logits[:, -1]]
        for place in range(start, ids.shape[1]):
            out = model(ids[:, place : place + 1], past_key_values=out.past_key_values)
            rows.append(out.logits[:, -1])
    expected = recorded[f"{case}_step_logits"]
    close(torch.stack(rows, dim=1)[:, : expected.shape[1]], expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_files(bits, tmp_path):
    """Official INT8 and INT4 files answer otherwise than with the official code."""
    folder = GOLDENS / "quantization"
    config = json.loads((GOLDENS / "chatglm2_tiny" / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_bit": bits}))
    weights = (folder / f"chatglm2_tiny_int{bits}.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights)
    with np.load(folder / "chatglm2_tiny_quant_logits.npz") as file:
        recorded = {key: torch.from_numpy(file[key]) for key in file.files}
    stored = AutoModelForCausalLM.from_pretrained(tmp_path).float()
    made = AutoModel.from_pretrained(GOLDENS / "chatglm2_tiny").float().quantize(bits)
    with torch.no_grad():
        for model in (stored, made):
            close(model(recorded["ids"]).logits, recorded[f"int{bits}_logits"])
    assert stored.state_dict().keys() == made.state_dict().keys()
