"""What is fetched of a repository: the weights once, what is needed to read them, nothing else."""

from __future__ import annotations

import pytest

from openglm.errors import DownloadError
from openglm.hub.choose import DOUBLE, OTHER, PYTHON, choose
from openglm.hub.listing import HubFile

SHARDS = [f"pytorch_model-0000{i}-of-00003.bin" for i in (1, 2, 3)]
SAFE = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
CHATGLM = [
    ".gitattributes",
    "MODEL_LICENSE",
    "README.md",
    "config.json",
    "modeling_chatglm.py",
    "quantization.py",
    "tokenizer.model",
    "tokenizer_config.json",
    "pytorch_model.bin.index.json",
    *SHARDS,
    "resources/logo.png",
]
"""As the repositories of ChatGLM are, with fewer shards."""


def files(names: list[str]) -> list[HubFile]:
    return [HubFile(name, 1) for name in names]


def chosen(names: list[str]) -> set[str]:
    return {file.path for file in choose(files(names), "org/name").files}


def test_an_official_repository() -> None:
    """Code is fetched, or a vocabulary is not."""
    choice = choose(files(CHATGLM), "org/name")
    assert {file.path for file in choice.files} == {
        "MODEL_LICENSE",
        "README.md",
        "config.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "pytorch_model.bin.index.json",
        *SHARDS,
    }
    assert [file.path for file in choice.files][-3:] == SHARDS, "weights come last"
    assert choice.left_out == {
        PYTHON: ["modeling_chatglm.py", "quantization.py"],
        OTHER: [".gitattributes", "resources/logo.png"],
    }


@pytest.mark.parametrize("safe", [["model.safetensors"], [*SAFE, "model.safetensors.index.json"]])
def test_weights_come_once_as_safetensors_if_complete(safe: list[str]) -> None:
    """12 GB are fetched twice, or as a pickle where a safe file is there."""
    choice = choose(files([*CHATGLM, *safe, "tf_model.h5", "pytorch_model.bin"]), "org/name")
    names = {file.path for file in choice.files}
    assert set(safe) <= names
    assert not names.intersection(["pytorch_model.bin.index.json", "pytorch_model.bin", *SHARDS])
    assert "tf_model.h5" in choice.left_out[DOUBLE]


@pytest.mark.parametrize(
    "incomplete",
    [SAFE, [SAFE[0], "model.safetensors.index.json"], ["model.safetensors.index.json"]],
)
def test_incomplete_safetensors_do_not_win(incomplete: list[str]) -> None:
    """An upload that was cut off hides the complete .bin files."""
    assert set(SHARDS) <= chosen([*CHATGLM, *incomplete])
    assert not chosen([*CHATGLM, *incomplete]).intersection(incomplete)


def test_missing_shards_are_named() -> None:
    """A folder with 11 of 12 GB is said to have no weights."""
    names = [name for name in CHATGLM if name != SHARDS[1]]
    with pytest.raises(DownloadError, match=SHARDS[1]):
        choose(files(names), "org/name")


@pytest.mark.parametrize(
    "weights",
    [
        ["latest", "1000/mp_rank_00_model_states.pt", "1000/mp_rank_01_model_states.pt"],
        ["latest_checkpointed_iteration.txt", "49300/mp_rank_00_model_states.pt"],
        ["mp_rank_00_model_states.pt"],
        ["codegeex_13b.pt", "vocab.json", "merges.txt", "added_tokens.json"],
    ],
)
def test_megatron_folders(weights: list[str]) -> None:
    """GLM-130B, GLM's own releases and CodeGeeX cannot be imported."""
    assert chosen([*weights, "ice_text.model", "notes.doc"]) == {*weights, "ice_text.model"}


@pytest.mark.parametrize(
    "archive",
    ["glm-130b-sat.tar.part_00", "codegeex_13b.tar.gz.1", "glm-base-blank.tar.bz2", "glm-10b.zip"],
)
def test_archives_are_to_be_unpacked_first(archive: str) -> None:
    """Users have the parts that the mail told them to fetch, and no word on what to do next."""
    with pytest.raises(DownloadError, match="archives") as caught:
        choose(files([archive, "README.md"]), "folder")
    assert "cat" in caught.value.hint


@pytest.mark.parametrize("names", [["README.md"], ["model.gguf"], ["a.pt", "b.pt"], []])
def test_no_weights_at_all(names: list[str]) -> None:
    """A repository of something else is fetched and cannot be loaded."""
    with pytest.raises(DownloadError, match="no complete set of weights"):
        choose(files(names), "org/name")


def test_a_repository_cannot_bring_our_record() -> None:
    """A forged openglm-download.json makes unchecked files count as checked."""
    assert "openglm-download.json" not in chosen([*CHATGLM, "openglm-download.json"])
