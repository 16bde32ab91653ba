"""GGUF files say what llama.cpp needs and hold every weight; networks that it lacks are refused.

What llama.cpp computes from them is in tests/parity/test_llama_cpp.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import pytest
import torch

from helpers_gguf import causal_config, metadata, tensor_types, weights_of
from helpers_models import assert_same, random_model, tiny_config
from openglm.checkpoints import export_gguf, load_checkpoint
from openglm.checkpoints.gguf import BLOCK, QUANTIZED, architecture
from openglm.errors import CheckpointError, TokenizerError, UsageError
from openglm.quant.rowwise import dequantize_rows
from openglm.registry import preset
from openglm.scheme import Scheme

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
NETWORKS = {
    "glm4_9b": causal_config(),
    "glm4_0414": causal_config(residual="sandwich", qkv_bias=False),
    "tied": causal_config(tie_word_embeddings=True),
}
ARCHITECTURE = {"glm4_9b": "chatglm", "glm4_0414": "glm4", "tied": "chatglm"}


@pytest.fixture(params=NETWORKS)
def network(request):
    return random_model(NETWORKS[request.param])


def exported(folder, model, dtype="auto", **options):
    return export_gguf(folder / "x.gguf", model.config, model.state_dict(), dtype, **options).path


@pytest.mark.parametrize("name", NETWORKS)
def test_metadata(name, tmp_path):
    """llama.cpp builds another network, or stops without saying more than a key."""
    arch = ARCHITECTURE[name]
    found = metadata(exported(tmp_path, random_model(NETWORKS[name]), "int4", name="tiny"))
    rounded = {
        f"{arch}.attention.layer_norm_rms_epsilon": 1.5625e-7,
        f"{arch}.rope.freq_base": 500000.0,
    }
    for key, value in rounded.items():
        assert found.pop(key) == pytest.approx(value, rel=1e-7)  # stored in float32
    assert found == {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": "tiny",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_0,
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        f"{arch}.vocab_size": 110,
        f"{arch}.context_length": 128,
        f"{arch}.embedding_length": 64,
        f"{arch}.block_count": 3,
        f"{arch}.feed_forward_length": 96,
        f"{arch}.attention.head_count": 4,
        f"{arch}.attention.head_count_kv": 2,
        f"{arch}.rope.dimension_count": 8,
        "tokenizer.ggml.model": "no_vocab",
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_tensor_names(name, tmp_path):
    """llama.cpp looks for tensors of its own names only."""
    arch = ARCHITECTURE[name]
    known = gguf.MODEL_TENSORS[gguf.MODEL_ARCH[arch.upper()]]
    stems = {gguf.TENSOR_NAMES[t].format(bid=i) for t in known for i in range(3)}
    found = tensor_types(exported(tmp_path, random_model(NETWORKS[name])))
    assert {name.rpartition(".")[0] for name in found} <= stems


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_floats_are_kept(network, dtype, tmp_path):
    """A weight is lost, doubled, mixed up, or rounded otherwise than torch rounds it."""
    kind = getattr(torch, dtype)
    rounded = {
        name: tensor if tensor.dim() == 1 else tensor.to(kind).float()
        for name, tensor in network.state_dict().items()
    }
    assert_same(weights_of(exported(tmp_path, network, dtype), network.config), rounded)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_auto_keeps_the_stored_type(stored, tmp_path):
    """A bf16 checkpoint comes out larger, or as float16, which has less range."""
    model = random_model(NETWORKS["glm4_9b"]).to(stored)
    types = tensor_types(exported(tmp_path, model))
    kind = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}[stored]
    vectors = {name for name in types if "norm" in name or name.endswith("bias")}
    assert types == {name: "F32" if name in vectors else kind for name in types}


@pytest.mark.parametrize(("dtype", "steps"), [("int8", 0.5 / 127), ("int4", 1 / 8)])
def test_errors_of_blocks_are_bounded(network, dtype, steps, tmp_path):
    """Blocks are cut or scaled in a wrong way.

    A step is the largest of 32 neighbours over 127, or over 8. Q8_0 is off by half a step; so is
    Q4_0, but from -8 to 7 steps: what lies 8 away on the other side is off by a whole one. The step
    itself is a float16 and off by 2^-11, which counts up to 127 or 8 times.
    """
    found = weights_of(exported(tmp_path, network, dtype), network.config)
    for name, exact in network.state_dict().items():
        if exact.dim() == 1:
            assert torch.equal(found[name], exact)
            continue
        blocks = exact.reshape(-1, BLOCK)
        largest = blocks.abs().amax(dim=1, keepdim=True)
        off = (found[name].reshape(-1, BLOCK) - blocks).abs()
        assert (off <= largest * (steps + 2**-11)).all(), name
        assert off.max() > 0, name


@pytest.mark.parametrize("name", NETWORKS)
def test_head_of_int4_has_eight_bits(name, tmp_path):
    """The head in 4 bits is what llama.cpp's own quantizer avoids: it costs most."""
    types = tensor_types(exported(tmp_path, random_model(NETWORKS[name]), "int4"))
    head = "token_embd.weight" if name == "tied" else "output.weight"
    assert ("output.weight" in types) == (name != "tied")
    assert [tensor for tensor, kind in types.items() if kind == "Q8_0"] == [head]
    assert types["blk.0.attn_qkv.weight"] == "Q4_0"
    assert types["blk.0.attn_norm.weight"] == "F32"


def test_rows_that_make_no_blocks_are_float16(tmp_path, caplog):
    """llama.cpp refuses a file with a cut block."""
    model = random_model(causal_config(intermediate_size=80))
    types = tensor_types(exported(tmp_path, model, "int8"))
    assert types["blk.2.ffn_down.weight"] == "F16"
    assert types["blk.2.ffn_up.weight"] == "Q8_0"
    assert "blk.2.ffn_down.weight is 80 wide" in caplog.text


@pytest.mark.parametrize("bits", [8, 4])
def test_official_integers(bits, tmp_path, caplog):
    """Weights of official INT8 and INT4 files come out as others than the official code makes.

    That code multiplies integer and scale in float16, which rounds once.
    """
    loaded = load_checkpoint(GOLDENS / "chatglm2_tiny", torch.float16, scheme=Scheme(bits=bits))
    weights = loaded.model.state_dict()
    path = export_gguf(tmp_path / "auto.gguf", loaded.config, weights).path
    assert tensor_types(path)["blk.1.attn_qkv.weight"] == "F16"
    found = weights_of(path, loaded.config)
    for name, tensor in found.items():
        stored = weights[name]
        if stored.dtype == torch.int8:
            scale = weights[f"{name}_scale"]
            stored = dequantize_rows(stored, scale, bits, torch.float16)
        assert torch.equal(tensor, stored.float()), name
    assert not caplog.text.count("quantized again")
    export_gguf(tmp_path / "int8.gguf", loaded.config, weights, "int8")
    assert f"{bits}-bit weights are quantized again, to Q8_0" in caplog.text


def test_file_or_folder(tmp_path):
    """The file is not where the user looks for it."""
    model = random_model(NETWORKS["glm4_9b"])
    for target, path, dtype in (
        ("new/own-name.gguf", "new/own-name.gguf", "int8"),
        ("new", "new/chat-Q8_0.gguf", "int8"),
        ("new", "new/chat-F32.gguf", "auto"),
    ):
        file = export_gguf(tmp_path / target, model.config, model.state_dict(), dtype, name="chat")
        assert file.path == tmp_path / path
        assert file.path.is_file()
        with pytest.raises(CheckpointError, match="exists already"):
            export_gguf(tmp_path / target, model.config, model.state_dict(), dtype, name="chat")
    assert len(list((tmp_path / "new").iterdir())) == 3


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("glm-10b", "position=learned_2d"),
        ("chatglm-6b", "position=rotary_2d"),
        ("glm-130b", "rotary_pairing=half_split"),
        ("codegeex-13b", "top_query=True"),
    ],
)
def test_other_networks_are_refused(name, found):
    """A file that llama.cpp loads and answers nonsense from, or that it cannot load."""
    with pytest.raises(CheckpointError, match=found) as caught:
        architecture(preset(name).model)
    assert "ChatGLM3" in caught.value.hint


@pytest.mark.parametrize("name", ["chatglm2-6b", "chatglm3-6b-32k", "codegeex2-6b", "glm-4-9b"])
def test_released_models_are_known(name):
    """A model that llama.cpp runs cannot be exported."""
    assert architecture(preset(name).model) == "chatglm"


def test_errors(tmp_path, monkeypatch, mini):
    """A mistake ends in a traceback, or leaves half a file behind."""
    model = random_model(NETWORKS["glm4_9b"])
    weights = model.state_dict()
    folder = tmp_path / "new"
    with pytest.raises(UsageError, match="unknown dtype 'int2'") as caught:
        export_gguf(folder, model.config, weights, "int2")
    assert "int4" in caught.value.hint
    fewer = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        export_gguf(folder, model.config, fewer)
    other = random_model(tiny_config())
    with pytest.raises(CheckpointError, match="position=learned_2d"):
        export_gguf(folder, other.config, other.state_dict())
    with pytest.raises(TokenizerError, match="of the kind mini") as tokenizer_error:
        export_gguf(folder, model.config, weights, tokenizer=mini)
    assert "chatglm3" in tokenizer_error.value.hint
    assert not list(folder.iterdir())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="not installed") as missing:
        export_gguf(folder, model.config, weights)
    assert ".[gguf]" in missing.value.hint


def test_columns_that_share_a_scale():
    """The width of a block is written down wrong."""
    for kind in QUANTIZED:
        assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] == BLOCK
