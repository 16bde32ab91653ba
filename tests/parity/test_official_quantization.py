"""Official INT8 and INT4: integers, scales, packing, and a whole quantized checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.torch import load_file
from torch.testing import assert_close

import openglm
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.errors import CheckpointError, UsageError
from openglm.quant.rowwise import dequantize_rows, pack_nibbles, quantize_rows, unpack_nibbles
from openglm.scheme import Scheme

GOLDENS = Path(__file__).parents[1] / "goldens"
QUANT = GOLDENS / "chatglm" / "quantization"
CASES = [
    (f"w{i}_{dtype}", scheme, bits)
    for i in range(3)
    for dtype in ("half", "float")
    for scheme in ("chatglm6b", "chatglm2")
    for bits in (8, 4)
]


@pytest.fixture(scope="module")
def recorded():
    with np.load(QUANT / "quant.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.mark.parametrize(("weight", "scheme", "bits"), CASES)
def test_integers_and_scales(weight, scheme, bits, recorded):
    """A model quantized here differs from one quantized by the official code."""
    name = f"{weight}_{scheme}_int{bits}"
    values, scale = quantize_rows(recorded[weight], bits, half_scale=scheme == "chatglm6b")
    assert torch.equal(values, recorded[f"{name}_q"])
    assert torch.equal(scale, recorded[f"{name}_scale"])
    packed = pack_nibbles(values) if bits == 4 else values
    assert torch.equal(packed, recorded[f"{name}_packed"])


@pytest.mark.parametrize(("weight", "scheme", "bits"), CASES)
def test_dequantized_weights(weight, scheme, bits, recorded):
    """Nibbles are read in the wrong order, or multiplied in another dtype."""
    name = f"{weight}_{scheme}_int{bits}"
    packed, scale = recorded[f"{name}_packed"], recorded[f"{name}_scale"]
    exact = dequantize_rows(packed, scale, bits, torch.float32)
    assert torch.equal(exact, recorded[f"{name}_dequant_float"])
    if f"{name}_dequant_half" in recorded:
        half = dequantize_rows(packed, scale, bits, torch.float16)
        assert torch.equal(half, recorded[f"{name}_dequant_half"])


def test_every_nibble(recorded):
    """-8, which quantizing never gives, is read as 8."""
    packed = recorded["allnibbles_packed"]
    assert torch.equal(unpack_nibbles(packed), recorded["allnibbles_q"])
    assert torch.equal(pack_nibbles(recorded["allnibbles_q"]), packed)


@given(
    hnp.arrays(np.int8, st.tuples(st.integers(1, 5), st.integers(1, 9).map(lambda n: 2 * n)),
               elements=st.integers(-8, 7))
)  # fmt: skip
def test_packing_is_invertible(values):
    """A weight comes back changed."""
    tensor = torch.from_numpy(values)
    assert torch.equal(unpack_nibbles(pack_nibbles(tensor)), tensor)


@pytest.mark.parametrize("bits", [8, 4])
def test_quantization_of_glm130b_and_codegeex(bits):
    """Their schemes are the same formula over fp16; so must be the integers."""
    with np.load(GOLDENS / "glm130b" / "quantization.npz") as file:
        values, scale = quantize_rows(torch.from_numpy(file["weight_fp16"]), bits)
        np.testing.assert_array_equal(values, file[f"q_int{bits}"])
        np.testing.assert_array_equal(scale, file[f"scale_int{bits}"])
        if bits == 4:
            np.testing.assert_array_equal(pack_nibbles(values), file["packed_int4"])
    with np.load(GOLDENS / "codegeex" / "quant.npz") as file:
        values, scale = quantize_rows(torch.from_numpy(file["weight_fp16"]), bits)
        name = "int8_weight" if bits == 8 else "int4_values_unpacked"
        np.testing.assert_array_equal(values, file[name])
        np.testing.assert_array_equal(scale, file[f"int{bits}_scale_fp16"])


def quantized_folder(tmp_path, bits, **config):
    values = json.loads((GOLDENS / "chatglm" / "chatglm2_tiny" / "config.json").read_text())
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values | {"quantization_bit": bits} | config))
    shutil.copy(QUANT / f"chatglm2_tiny_int{bits}.safetensors", folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("bits", [8, 4])
def test_an_official_quantized_checkpoint(bits, tmp_path):
    """chatglm2-6b-int4 does not load, or answers otherwise than officially on a CPU."""
    model = openglm.load(quantized_folder(tmp_path, bits), dtype="float32", device="cpu")
    with np.load(QUANT / "chatglm2_tiny_quant_logits.npz") as file:
        logits = model.logits(torch.from_numpy(file["ids"]))
        expected = torch.from_numpy(file[f"int{bits}_logits"])
    assert_close(logits, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("bits", "config", "said"),
    [
        (8, {"quantization_bit": 4}, "wrong shape"),
        (4, {"quantization_bit": 0}, r"unexpected|dtype"),
        (8, {"quantization_bit": 3}, "quantization_bit=3 is not one of 8, 4"),
        (4, {"quantization_embeddings": True}, "quantized embeddings"),
    ],
)
def test_a_description_that_does_not_fit(bits, config, said, tmp_path):
    """Packed bytes are taken for weights."""
    with pytest.raises(CheckpointError, match=said):
        openglm.load(quantized_folder(tmp_path, bits, **config))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("layout", ["openglm", "hf"])
def test_quantized_weights_survive_conversion(bits, layout, tmp_path):
    """Converting an INT4 checkpoint loses its scales, or unpacks it."""
    loaded = load_checkpoint(quantized_folder(tmp_path, bits))
    weights = loaded.model.state_dict()
    save_checkpoint(tmp_path / "out", loaded.config, weights, layout)
    again = load_checkpoint(tmp_path / "out")
    assert (again.scheme, again.config) == (Scheme(bits=bits), loaded.config)
    found = again.model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())


def test_quantized_weights_are_not_cut_into_ranks(tmp_path):
    """Scales belong to whole rows; those of cut rows would be others."""
    loaded = load_checkpoint(quantized_folder(tmp_path, 8))
    with pytest.raises(UsageError, match="cannot be written as rank files"):
        save_checkpoint(
            tmp_path / "out", loaded.config, loaded.model.state_dict(), "megatron", num_ranks=2
        )


@pytest.mark.parametrize("bits", [8, 4])
def test_quantizing_at_load(bits):
    """dtype=int4 gives another model than the official code makes of the same weights."""
    chatglm2 = GOLDENS / "chatglm" / "chatglm2_tiny"
    model = openglm.load(chatglm2, dtype=f"int{bits}", device="cpu")
    with np.load(QUANT / "chatglm2_tiny_quant_logits.npz") as file:
        logits = model.logits(torch.from_numpy(file["ids"]))
        assert_close(logits, torch.from_numpy(file[f"int{bits}_logits"]), atol=1e-5, rtol=0)
    official = load_file(QUANT / f"chatglm2_tiny_int{bits}.safetensors")
    name = "transformer.encoder.layers.0.mlp.dense_4h_to_h.weight"
    network = load_checkpoint(chatglm2, scheme=Scheme(bits=bits)).model
    assert torch.equal(network.layers[0].mlp.down_proj.weight, official[name])


@pytest.mark.parametrize("bits", [8, 4])
def test_glm130b_with_quantized_weights(bits):
    """Rows of the joined query, key and value weights get other scales than officially.

    The released weights are fp16, and so is the product of integer and scale.
    """
    meta = json.loads((GOLDENS / "glm130b" / "meta.json").read_text())
    folder = GOLDENS / "glm130b" / "sat_tp1"
    network = load_checkpoint(folder, torch.float32, description=meta).model
    model = openglm.LanguageModel(network, None, "quantized")
    for layer in network.layers.modules():
        if isinstance(layer, torch.nn.Linear):
            values, scale = quantize_rows(layer.weight.data.half(), bits)
            stored = pack_nibbles(values) if bits == 4 else values
            layer.weight.data = dequantize_rows(stored, scale, bits, torch.float16).float()
    with np.load(GOLDENS / "glm130b" / "quantized_model.npz") as file:
        mask = ~torch.from_numpy(file["attention_mask_true_is_masked"])[:, 0]
        ids, positions = (torch.from_numpy(file[n]) for n in ("input_ids", "position_ids"))
        logits = model.logits(ids, positions, mask=mask)
        assert_close(logits, torch.from_numpy(file[f"logits_int{bits}"]), atol=1e-4, rtol=0)


def test_quantized_weights_are_not_quantized_again(tmp_path):
    """INT4 files asked for in INT8 lose precision twice."""
    with pytest.raises(CheckpointError, match="int4, and cannot be brought to int8"):
        openglm.load(quantized_folder(tmp_path, 4), dtype="int8")
