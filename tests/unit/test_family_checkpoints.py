"""Every family: what is written in its official layout comes back bit for bit."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_models import random_model, tiny_config
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.errors import CheckpointError
from openglm.scheme import Scheme

NO_DROPOUT = {"embedding_dropout": 0.0, "attention_dropout": 0.0, "hidden_dropout": 0.0}
DEEPNORM = {
    "residual": "deepnorm",
    "rotary_compute": "float16",
    "rotary_frequencies": "float16",
    "context": "until_sop",
    "intermediate_size": 60,
    "hidden_size": 48,
    **NO_DROPOUT,
}
SWIGLU = {
    "hidden_size": 48,
    "num_key_value_heads": 3,
    "position": "rotary",
    "rotary_dim": 2,
    "rotary_pairing": "interleaved",
    "rope_theta": 500000.0,
    "norm": "rmsnorm",
    "activation": "swiglu",
    "linear_bias": False,
    "tie_word_embeddings": False,
    **NO_DROPOUT,
}
NETWORKS = {
    "chatglm6b": tiny_config(
        position="rotary_2d",
        activation="gelu_tanh",
        residual_scale=math.sqrt(56),
        **DEEPNORM,
    ),
    "chatglm2": tiny_config(
        **SWIGLU
        | {"rotary_compute": "float16", "rotary_frequencies": "as_compute"}
        | {"rope_theta": 10000.0}
    ),
    "glm4": tiny_config(**SWIGLU),
    "glm4_0414": tiny_config(**SWIGLU, residual="sandwich", qkv_bias=False),
    "glm130b": tiny_config(
        position="rotary", activation="geglu", residual_scale=math.sqrt(6), **DEEPNORM
    ),
    "codegeex": tiny_config(
        position="learned", activation="gelu_sigmoid", top_query=True, **NO_DROPOUT
    ),
}
HF = ["chatglm6b", "chatglm2", "glm4", "glm4_0414", "codegeex"]
RANKS = [("glm130b", 1), ("glm130b", 2), ("glm130b", 4), ("codegeex", 1), ("codegeex", 2)]


TOKENS = {"mask": 40, "gmask": 41, "sop": 44, "eop": 45, "eos": 2, "pad": 3}


def assert_round_trip(config, folder, layout, num_ranks=1, roles=()):
    weights = random_model(config).state_dict()
    save_checkpoint(folder, config, weights, layout, num_ranks=num_ranks, token_ids=TOKENS)
    loaded = load_checkpoint(folder)
    assert loaded.config == config
    assert {role: loaded.token_ids.get(role) for role in roles} == {r: TOKENS[r] for r in roles}
    found = loaded.model.state_dict()
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", NETWORKS)
def test_own_layout(name, tmp_path):
    """An axis or a tensor of a later model gets lost in an openglm folder."""
    assert_round_trip(NETWORKS[name], tmp_path / "model", "openglm", roles=TOKENS)


@pytest.mark.parametrize("name", HF)
def test_hugging_face_layout(name, tmp_path):
    """An exported model comes back as another one."""
    roles = {"chatglm6b": ("mask", "gmask", "sop", "eop", "pad"), "codegeex": ()}
    assert_round_trip(
        NETWORKS[name], tmp_path / "model", "hf", roles=roles.get(name, ("eos", "pad"))
    )


@pytest.mark.parametrize(("name", "num_ranks"), RANKS)
def test_rank_files(name, num_ranks, tmp_path):
    """Splitting over ranks cuts a tensor at a wrong place."""
    roles = ("mask", "gmask", "sop", "eop", "eos") if name == "glm130b" else ()
    assert_round_trip(NETWORKS[name], tmp_path / "model", "megatron", num_ranks, roles)


def test_sat_is_a_name_for_the_rank_files_of_glm130b(tmp_path):
    """The name that GLM-130B's users know is unknown, or given to files of other models."""
    roles = ("mask", "gmask", "sop", "eop", "eos")
    assert_round_trip(NETWORKS["glm130b"], tmp_path / "sat", "sat", 2, roles)
    config = NETWORKS["codegeex"]
    with pytest.raises(CheckpointError, match="no official sat files can hold this network"):
        save_checkpoint(tmp_path / "no", config, random_model(config).state_dict(), "sat")


@pytest.mark.parametrize("name", NETWORKS)
def test_parameter_count(name):
    """`glm info` and memory plans would show wrong numbers."""
    config = NETWORKS[name]
    built = sum(tensor.numel() for tensor in random_model(config).parameters())
    assert built == config.num_parameters


def test_a_network_without_official_files_is_not_exported(tmp_path):
    """A network that no official code can run is written under an official name."""
    config = tiny_config(norm="rmsnorm")
    with pytest.raises(CheckpointError, match="no official hf files can hold this network"):
        save_checkpoint(tmp_path / "out", config, random_model(config).state_dict(), "hf")
    assert not any(tmp_path.iterdir())


def test_a_tied_head_in_the_file_is_accepted_and_compared(tmp_path, caplog):
    """ChatGLM-6B files repeat the embedding as lm_head: refused, or a difference not told."""
    config, folder = NETWORKS["chatglm6b"], tmp_path / "model"
    save_checkpoint(folder, config, random_model(config).state_dict(), "hf")
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] = tensors["transformer.word_embeddings.weight"].clone()
    save_file(tensors, file)
    load_checkpoint(folder)
    assert not caplog.records
    tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
    save_file(tensors, file)
    load_checkpoint(folder)
    assert "lm_head.weight differs from word_embeddings.weight" in caplog.text


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("name", ["chatglm6b", "chatglm2"])
def test_quantized_weights_in_official_files(name, bits, tmp_path):
    """The released INT4 files of ChatGLM-6B do not load: scales were cut like columns."""
    config = NETWORKS[name]
    save_checkpoint(tmp_path / "plain", config, random_model(config).state_dict(), "openglm")
    weights = load_checkpoint(tmp_path / "plain", scheme=Scheme(bits=bits)).model.state_dict()
    save_checkpoint(tmp_path / "hf", config, weights, "hf")
    again = load_checkpoint(tmp_path / "hf")
    assert again.scheme == Scheme(bits=bits)
    found = again.model.state_dict()
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key]) for key in weights)
