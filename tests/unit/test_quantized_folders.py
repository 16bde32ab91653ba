"""Group-wise quantized folders: written, loaded, refused, converted, told of."""

from __future__ import annotations

import json

import pytest
import torch
from torch.testing import assert_close

import openglm
from helpers_models import assert_same, edit_json, forward, random_model, refused, tiny_config
from openglm.checkpoints import load_checkpoint, load_random, open_checkpoint, save_checkpoint
from openglm.cli.architecture import find_architecture
from openglm.cli.main import _run
from openglm.errors import CheckpointError, ConfigError, UsageError
from openglm.nn.masks import MaskSpec
from openglm.quant.linear import PackedEmbedding, PackedLinear
from openglm.quant.transform import DequantizedWeights, QuantizedWeights
from openglm.scheme import Scheme, find_scheme

NAMES = ["int8-g32", "int4-g64-asym", "int4-g32+embeddings", "int4-g128-asym+embeddings+head"]
UNTIED = {"tie_word_embeddings": False}


def write(folder, name, **changes):
    """A quantized folder of a random network, and the floats that it stands for."""
    config, scheme = tiny_config(**changes), find_scheme(name)
    weights = QuantizedWeights(random_model(config).state_dict(), config, scheme)
    save_checkpoint(folder, config, weights, "openglm")
    return config, scheme


@pytest.mark.parametrize("name", [*NAMES, "int8", "int4"])
def test_names_are_those_of_their_schemes(name):
    """A dtype that a report names cannot be asked for, or config.json forgets part of it."""
    scheme = find_scheme(name)
    assert scheme.name == name
    assert Scheme.from_dict(scheme.to_dict()) == scheme


@pytest.mark.parametrize("name", ["int4-g16", "int3-g32", "int4-asym", "int4-g64+norms", "int"])
def test_names_of_no_scheme(name):
    """A typing error is taken for a dtype."""
    with pytest.raises(UsageError, match="unknown dtype"):
        openglm.load("mini", dtype=name)


def test_the_official_scheme_has_no_options():
    """int4+head files would be official in name only."""
    with pytest.raises(UsageError, match="for the blocks only"):
        find_scheme("int4+head")


@pytest.mark.parametrize("changes", [{}, UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("name", NAMES)
def test_a_folder_computes_what_its_floats_compute(name, changes, tmp_path):
    """Packed layers, embedding or head read other weights than were written.

    The sums are of the same numbers in the same order but for how rows are cut: 1e-4 of logits up
    to 100.
    """
    config, scheme = write(tmp_path / "q", name, **changes)
    loaded = load_checkpoint(tmp_path / "q")
    assert loaded.scheme == scheme
    packed = [m for m in loaded.model.modules() if isinstance(m, PackedLinear | PackedEmbedding)]
    extra = scheme.packs_embedding(config.tie_word_embeddings) + (scheme.head and bool(changes))
    assert len(packed) == 6 * config.num_layers + extra
    floats = random_model(config)
    source = open_checkpoint(tmp_path / "q")
    floats.load_state_dict(dict(DequantizedWeights(source, config, scheme, torch.float32)))
    ids = torch.arange(12).view(2, 6)
    mask = MaskSpec.causal()
    assert_close(forward(loaded.model, ids, mask), forward(floats, ids, mask), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_folders_survive_conversion(name, tmp_path):
    """Copying a quantized folder changes it."""
    write(tmp_path / "q", name)
    assert (
        _run(["convert", str(tmp_path / "q"), str(tmp_path / "again"), "--to", "openglm"], False)
        == 0
    )
    first, again = (load_checkpoint(tmp_path / folder) for folder in ("q", "again"))
    assert_same(again.model.state_dict(), first.model.state_dict())
    assert again.scheme == first.scheme


def test_quantizing_at_load_is_quantizing_to_files(tmp_path):
    """dtype=int4-g64 gives another model than a folder of that name."""
    config, scheme = write(tmp_path / "q", "int4-g64")
    save_checkpoint(tmp_path / "plain", config, random_model(config).state_dict(), "openglm")
    at_load = load_checkpoint(tmp_path / "plain", torch.float32, scheme=scheme).model.state_dict()
    assert_same(at_load, load_checkpoint(tmp_path / "q").model.state_dict())
    assert load_random(config, scheme=scheme).state_dict().keys() == at_load.keys()


def test_integers_stay_in_their_file(tmp_path):
    """Loading copies what could be mapped: twice the memory, and seconds instead of none."""
    write(tmp_path / "q", "int8-g32")
    source = open_checkpoint(tmp_path / "q")
    weights = [source[f"layers.0.mlp.{x}_proj.weight"] for x in ("up", "down")]
    assert all(weight.data_ptr() % 64 == 0 for weight in weights)  # kernels read whole lines
    first, again = (load_checkpoint(tmp_path / "q").model for _ in range(2))
    with torch.no_grad():
        kept = first.layers[0].mlp.up_proj.weight
        assert torch.equal(kept, again.layers[0].mlp.up_proj.weight)
        assert kept.untyped_storage().nbytes() >= kept.nbytes


@pytest.mark.parametrize("to", ["hf", "megatron", "gguf"])
def test_other_layouts_need_floats(to, tmp_path, capsys):
    """Packed bytes are written into a layout whose readers take them for something else."""
    write(tmp_path / "q", "int4-g32")
    assert _run(["convert", str(tmp_path / "q"), str(tmp_path / "out"), "--to", to], False) != 0
    said = capsys.readouterr().err
    assert "int4-g32 weights cannot be written as" in said
    assert "--dtype float16" in said
    assert not (tmp_path / "out").exists()


def test_floats_can_be_had_again(tmp_path):
    """--dtype float32 leaves the integers as they are, or changes what they stand for."""
    config, scheme = write(tmp_path / "q", "int4-g32+embeddings")
    arguments = ["convert", str(tmp_path / "q"), str(tmp_path / "out"), "--to", "openglm"]
    assert _run([*arguments, "--dtype", "float32"], False) == 0
    expected = DequantizedWeights(open_checkpoint(tmp_path / "q"), config, scheme, torch.float32)
    assert_same(load_checkpoint(tmp_path / "out").model.state_dict(), dict(expected))


def test_other_widths_are_refused(tmp_path):
    """INT4 files asked for in INT8 lose precision twice."""
    write(tmp_path / "q", "int4-g32")
    with pytest.raises(CheckpointError, match="int4-g32, and cannot be brought to int8"):
        openglm.load(tmp_path / "q", dtype="int8")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"bits": 8}, "wrong shape"),
        ({"symmetric": False}, "missing"),
        ({"include": ["embeddings"]}, "missing"),
        ({"bits": 3}, "3 bits are not possible"),
        ({"bits": "4"}, "quantization.bits='4'"),
        ({"include": ["norms"]}, "norms"),
        ({"rotation": "hadamard"}, "does not know rotation"),
    ],
)
def test_a_description_that_does_not_fit(table, said, tmp_path):
    """Packed bytes are taken for other weights than they are."""
    write(tmp_path / "q", "int4-g32")
    values = json.loads((tmp_path / "q" / "config.json").read_text())["quantization"]
    edit_json(tmp_path / "q" / "config.json", quantization=values | table)
    refused(tmp_path / "q", said)


def test_integers_without_a_description(tmp_path):
    """A lost table makes weights of bytes."""
    write(tmp_path / "q", "int4-g32")
    edit_json(tmp_path / "q" / "config.json", quantization=None)
    refused(tmp_path / "q", "unexpected")


def test_strange_tables():
    """A table that is no scheme breaks with a KeyError."""
    with pytest.raises(ConfigError, match="lacks or does not know"):
        Scheme.from_dict({})


def test_info_tells_of_it(tmp_path, capsys):
    """`glm info`, `glm plan` and `glm bench` take a quantized folder for one of floats."""
    write(tmp_path / "q", "int4-g32")
    assert find_architecture(str(tmp_path / "q"))[1]["quantization"] == "int4-g32"
    assert _run(["info", str(tmp_path / "q"), "--json"], False) == 0
    told = json.loads(capsys.readouterr().out)
    stored = sum(t.nbytes for t in open_checkpoint(tmp_path / "q").values())
    assert told["quantization"] == "int4-g32"
    # Kept weights are float32 here; the arithmetic of files has them in 16 bits.
    assert told["weight_bytes"]["int4-g32"] < stored
    assert _run(["info", str(tmp_path / "q")], False) == 0
    assert "int4-g32" in capsys.readouterr().out
    assert _run(["plan", str(tmp_path / "q"), "--json"], False) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "int4-g32"
