"""Files that were made to break a loader: each gives an error, and nothing of them is run."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers_models import random_model, tiny_config
from openglm.checkpoints import load_checkpoint, save_checkpoint
from openglm.errors import CheckpointError, OpenGLMError
from openglm.tokenizers import find_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"


@pytest.fixture
def hf(tmp_path):
    config = tiny_config()
    save_checkpoint(tmp_path / "model", config, random_model(config).state_dict(), "hf")
    return tmp_path / "model"


def changed_copy(name: str, tmp_path: Path, **changes: object) -> Path:
    """A recorded checkpoint with another `config.json`."""
    folder = tmp_path / "model"
    folder.mkdir()
    source = GOLDENS / name
    (folder / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes())
    config = json.loads((source / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def with_header(folder: Path, header: object, data: bytes = b"\0" * 64, length: int | None = None):
    """Replaces the weights by a safetensors file with this header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", size) + text + data)


def entry(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 2**63 - 1),  # a header of 8 exabytes
        (b"{}", 2**64 - 1),
        (b"{", None),
        (b"[]", None),
        (b"\xff\xfe{}", None),
        ({"a": entry(0, 16, [4]), "b": entry(8, 24, [4])}, None),  # overlapping
        ({"a": entry(0, 4096, [1024])}, None),  # beyond the end of the file
        ({"a": entry(16, 0, [4])}, None),  # backwards
        ({"a": entry(0, 16, [2**62, 2**62])}, None),  # the size overflows
        ({"a": entry(0, 16, [5])}, None),  # shape and size disagree
        ({"a": entry(0, 16, [4], dtype="F31")}, None),
        (b'{"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}', None),
        ({"a": entry(4, 20, [4])}, None),  # a hole in front
    ],
)
def test_hostile_safetensors_headers(header, length, hf):
    """A crafted header makes the loader read memory that is not its own, or allocate it all."""
    with_header(hf, header, length=length)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(hf)
    assert "model.safetensors" in caught.value.message


def test_a_name_twice_in_a_header(hf):
    """Of two tensors with one name, the checked one is not the one that is used."""
    one = json.dumps(entry(0, 16, [4]))
    with_header(hf, f'{{"a": {one}, "a": {one}}}'.encode())
    with pytest.raises(CheckpointError):
        load_checkpoint(hf)


class Touch:
    """Leaves a mark when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("where", ["weights", "nested", "key"])
def test_code_anywhere_in_a_pickle(where, tmp_path):
    """Only the first level of a file is looked at for code."""
    mark = tmp_path / "owned"
    folder = tmp_path / "model"
    folder.mkdir()
    content = {
        "weights": {"module": {"a": Touch(mark)}},
        "nested": {"module": {"language_model": {"embedding": [Touch(mark)]}}},
        "key": {"module": {"a": torch.zeros(1)}, "rng_state": Touch(mark)},
    }[where]
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError, match="wants to run code"):
        load_checkpoint(folder)
    assert not mark.exists()


def test_a_zip_inside_a_pickle_is_not_followed(tmp_path):
    """An archive in the place of a torch file is unpacked."""
    folder = tmp_path / "model"
    folder.mkdir()
    with zipfile.ZipFile(folder / "codegeex_13b.pt", "w") as archive:
        archive.writestr("../../outside", "x")
    with pytest.raises(CheckpointError, match="not a complete torch file"):
        load_checkpoint(folder)
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", ["chatglm6b_tiny", "chatglm2_tiny", "glm4_9b_hf_tiny"])
def test_code_beside_the_weights_is_ignored(name, tmp_path):
    """`auto_map` makes the loader import Python files of the folder, as trust_remote_code does."""
    mark = tmp_path / "owned"
    code = {"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}
    folder = changed_copy(name, tmp_path, auto_map=code)
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "auto_map": {"AutoTokenizer": ["evil.Tokenizer", None]},
                "chat_template": "{{ ''.__class__ }}{% for i in range(10**9) %}{% endfor %}",
            }
        )
    )
    load_checkpoint(folder)
    assert find_tokenizer(folder) is None
    assert not mark.exists()


SIZES = {
    "chatglm6b_tiny": ["num_layers", "hidden_size", "vocab_size", "num_attention_heads"],
    "chatglm2_tiny": ["num_layers", "hidden_size", "multi_query_group_num", "padded_vocab_size"],
    "glm4_9b_hf_tiny": ["num_hidden_layers", "hidden_size", "num_key_value_heads", "vocab_size"],
}


@pytest.mark.parametrize(("name", "key"), [(n, key) for n, keys in SIZES.items() for key in keys])
@pytest.mark.parametrize("value", [0, -1, 10**9, 2**70, 1.5, "4", None, [4], True, float("nan")])
def test_sizes_that_cannot_be(name, key, value, tmp_path):
    """A description makes the loader allocate terabytes, loop for ever, or divide by zero."""
    folder = changed_copy(name, tmp_path, **{key: value})
    with pytest.raises(OpenGLMError):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("chatglm2_tiny", "rope_ratio", "50"),
        ("chatglm2_tiny", "layernorm_epsilon", "small"),
        ("chatglm2_tiny", "torch_dtype", "int3"),
        ("chatglm2_tiny", "add_qkv_bias", "yes"),
        ("chatglm2_tiny", "quantization_bit", "four"),
        ("chatglm2_tiny", "quantization_bit", [4]),
        ("chatglm6b_tiny", "torch_dtype", 16),
        ("chatglm6b_tiny", "tie_word_embeddings", "false"),
        ("chatglm6b_tiny", "bos_token_id", "x"),
        ("chatglm6b_tiny", "position_encoding_2d", "false"),
        ("chatglm2_tiny", "rmsnorm", "false"),
        ("chatglm2_tiny", "rope_ratio", 10**400),
        ("chatglm2_tiny", "rope_ratio", 0),
        ("glm4_9b_hf_tiny", "rope_parameters", {"rope_theta": 1e4, "partial_rotary_factor": 1e999}),
        ("glm4_9b_hf_tiny", "rope_parameters", {"rope_theta": None}),
        ("glm4_9b_hf_tiny", "rope_parameters", {"rope_theta": 1e4, "rope_type": "yarn"}),
        ("glm4_9b_hf_tiny", "hidden_act", "gelu"),
        ("glm4_9b_hf_tiny", "head_dim", 8),
        ("glm4_9b_hf_tiny", "model_type", ["glm"]),
    ],
)
def test_values_of_a_wrong_kind(name, key, value, tmp_path):
    """A traceback, or another network than the description says."""
    folder = changed_copy(name, tmp_path, **{key: value})
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


def test_two_names_for_one_tensor(tmp_path):
    """Of two versions of a weight, the last one is taken."""
    config, folder = tiny_config(), tmp_path / "model"
    save_checkpoint(folder, config, random_model(config).state_dict(), "hf")
    tensors = load_file(folder / "model.safetensors")
    tensors["glm.word_embeddings.weight"] = tensors["word_embeddings.weight"] + 1
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="one tensor twice"):
        load_checkpoint(folder)


@pytest.mark.parametrize("kind", ["deep", "cyclic", "collision"])
def test_dictionaries_in_dictionaries(kind, tmp_path):
    """A dictionary that holds itself ends in a RecursionError, or a tensor hides another."""
    content: dict[str, object] = {"a": torch.zeros(1)}
    if kind == "deep":
        for _ in range(50):
            content = {"a": content}
    elif kind == "cyclic":
        content["b"] = content
    else:
        content = {"a": {"b": torch.zeros(1)}, "a.b": torch.ones(1)}
    folder = tmp_path / "model"
    folder.mkdir()
    torch.save({"module": content}, folder / "mp_rank_00_model_states.pt")
    with pytest.raises(CheckpointError):
        load_checkpoint(folder)


def test_quantized_rank_files_are_refused(tmp_path):
    """Scales that belong to one rank are joined with those of another."""
    folder = tmp_path / "model"
    folder.mkdir()
    config = tiny_config(activation="gelu_tanh")
    save_checkpoint(
        tmp_path / "split", config, random_model(config).state_dict(), "megatron", num_ranks=2
    )
    description = json.loads((tmp_path / "split" / "config.json").read_text())
    (tmp_path / "split" / "config.json").write_text(
        json.dumps(description | {"quantization_bit": 8})
    )
    with pytest.raises(CheckpointError, match="quantized rank files cannot be joined"):
        load_checkpoint(tmp_path / "split")
