"""Tokenizers of the ChatGLM generations against recordings of the official ones.

The vocabulary files are not in the repository; without them these tests are skipped.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from openglm.errors import TokenizerError
from openglm.tokenizers import Tokenizer, find_tokenizer, open_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm" / "tokenizer"
ICE, OLD_ICE = "chatglm6b_ice_text.model", "ice_text_v0_icetk.model"
SHARED = "chatglm2_chatglm3_tokenizer.model"
FILES = {  # recording, kind, file, offset of the ids
    "chatglm": ("chatglm6b", ICE, 0),
    "icetk": ("chatglm6b", OLD_ICE, 20000),
    "chatglm-icetk": ("chatglm6b", OLD_ICE, 20000),
    "chatglm2": ("chatglm2", SHARED, 0),
    "chatglm3": ("chatglm3", SHARED, 0),
    "codegeex2": ("codegeex2", "codegeex2_tokenizer.model", 0),
}


@cache
def recorded(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((GOLDENS / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(params=FILES)
def case(request, official_tokenizers) -> tuple[Tokenizer, list[dict[str, Any]], int]:
    """A tokenizer, the recorded rows, and what to add to the recorded ids."""
    name, file, offset = FILES[request.param]
    tokenizer = open_tokenizer(request.param, official_tokenizers / file)
    return tokenizer, recorded(name)["rows"], offset


def test_ids(case):
    """A chat model reads other tokens than it was trained on."""
    tokenizer, rows, offset = case
    found = {row["text"]: tokenizer.encode(row["text"]) for row in rows}
    assert found == {row["text"]: [i + offset for i in row["sp_ids"]] for row in rows}


def test_decoded_text(case):
    """Answers have spaces or line breaks at wrong places."""
    tokenizer, rows, offset = case
    found = [tokenizer.decode([i + offset for i in row["sp_ids"]]) for row in rows]
    assert found == [row["decode_sp"] for row in rows]


def test_command_tokens_do_not_come_out_of_text(case):
    """A user who types a role or [gMASK] steers the model instead of being quoted."""
    tokenizer, _, _ = case
    for token in tokenizer.special.tokens:
        if token.role not in ("pad", "unk"):  # <unk> is a piece of ChatGLM2, and its padding
            assert token.id not in tokenizer.encode(f"a {token.text} b{token.text}"), token


@pytest.mark.parametrize("kind", ["chatglm", "chatglm2", "chatglm3"])
def test_ids_of_command_tokens(kind, official_tokenizers):
    """Masks, roles or end tokens have other ids than in the weights."""
    name, file, _ = FILES[kind]
    tokenizer = open_tokenizer(kind, official_tokenizers / file)
    official = recorded(name)["special"]
    found = {token.text: token.id for token in tokenizer.special.tokens}
    common = official.keys() & found.keys()
    assert {"[MASK]", "[gMASK]"} <= common
    assert {text: found[text] for text in common} == {text: official[text] for text in common}
    assert tokenizer.vocab_size == recorded(name)["vocab_size"]


@pytest.mark.parametrize(
    ("file", "name", "config", "kind"),
    [
        (ICE, "ice_text.model", {}, "chatglm"),
        (OLD_ICE, "ice_text.model", {"num_layers": 70}, "icetk"),
        (OLD_ICE, "ice_text.model", {"model_type": "chatglm"}, "chatglm-icetk"),
        (SHARED, "tokenizer.model", {"seq_length": 32768}, "chatglm2"),
        (SHARED, "tokenizer.model", {"classifier_dropout": None}, "chatglm3"),
        (SHARED, "tokenizer.model", {"rope_ratio": 50}, "chatglm3"),
        ("codegeex2_tokenizer.model", "tokenizer.model", {}, "codegeex2"),
    ],
)
@pytest.mark.parametrize("declared", [True, False])
def test_the_files_tell_the_generation(
    file, name, config, kind, declared, official_tokenizers, tmp_path
):
    """One official class name stands for five tokenizers; a wrong one gives garbage."""
    (tmp_path / name).write_bytes((official_tokenizers / file).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    if declared:
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLMTokenizer"}')
    found = find_tokenizer(tmp_path)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(
    ("kind", "file", "said"),
    [
        ("codegeex2", SHARED, "is the tokenizer of ChatGLM2 or ChatGLM3, not of codegeex2"),
        ("chatglm2", "codegeex2_tokenizer.model", "is the tokenizer of CodeGeeX2"),
        ("chatglm3", ICE, "has 130344 pieces; the tokenizer of chatglm3 has 64789"),
        ("chatglm", SHARED, "has 64789 pieces and is no tokenizer of ChatGLM-6B"),
    ],
)
def test_the_file_of_another_model_is_refused(kind, file, said, official_tokenizers):
    """Two files of the same size get mixed up, and every line starts with a wrong space."""
    with pytest.raises(TokenizerError, match=said):
        open_tokenizer(kind, official_tokenizers / file)
