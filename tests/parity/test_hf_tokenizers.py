"""`AutoTokenizer` of `openglm.hf` against recordings of the official tokenizers.

The vocabulary files are not in the repository; without them these tests are skipped.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoTokenizer

import openglm.hf  # registers the classes
from helpers_hf import VOCABULARIES, add_code
from openglm.errors import RequestError, TokenizerError
from openglm.tokenizers import open_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm" / "tokenizer"
FILES = {"chatglm": "chatglm6b", "chatglm2": "chatglm2", "chatglm3": "chatglm3"}
CONFIGS = {
    "chatglm": {"vocab_size": 130528},
    "chatglm2": {"padded_vocab_size": 65024},
    "chatglm3": {"padded_vocab_size": 65024, "classifier_dropout": None},
    "codegeex2": {"padded_vocab_size": 65024},
}
COMMANDS = ("[MASK]", "<sop>", "<eop>", "<pad>", "<unk>")
"""What the official tokenizer of ChatGLM-6B takes for command tokens in a text; ours does not."""

assert openglm.hf.register


@pytest.fixture(scope="module")
def folder(official_tokenizers, tmp_path_factory):
    """Makes a folder with a vocabulary and code that must not run."""

    def write(kind):
        source, name, _ = VOCABULARIES[kind]
        path = tmp_path_factory.mktemp(kind)
        (path / name).write_bytes((official_tokenizers / source).read_bytes())
        (path / "config.json").write_text(json.dumps({"model_type": "chatglm", **CONFIGS[kind]}))
        return path, add_code(path)

    return write


@pytest.fixture(scope="module")
def load(folder):
    loaded = {}

    def open_kind(kind):
        if kind not in loaded:
            path, marker = folder(kind)
            loaded[kind] = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
            assert not marker.exists()
        return loaded[kind]

    return open_kind


def recorded(kind):
    return json.loads((GOLDENS / f"{FILES[kind]}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("kind", FILES)
def test_ids_and_texts(kind, load):
    """Prompts of old scripts become other tokens, or answers another text."""
    tokenizer = load(kind)
    for row in recorded(kind)["rows"]:
        text = row["text"]
        if kind == "chatglm" and any(command in text for command in COMMANDS):
            assert tokenizer(text, add_special_tokens=False)["input_ids"] == row["sp_ids"]
            continue
        assert tokenizer.encode(text) == row["ids"], text
        assert tokenizer(text)["input_ids"] == row["ids"]
        assert tokenizer.encode(text, add_special_tokens=False) == row["ids_no_special"]
        assert tokenizer.decode(row["ids_no_special"]) == row["decode_sp"], text
        assert tokenizer.decode(row["ids"], skip_special_tokens=True) == row["decode_sp"], text
        if kind != "chatglm3":
            assert tokenizer.decode(row["ids"]) == row["decode_hf"], text


def test_special_tokens_are_written_out(load):
    """ChatGLM3 shows its command tokens, for whoever looks at a prompt; others hide them."""
    ids = load("chatglm3").encode("你好")
    assert load("chatglm3").decode(ids).replace(" ", "") == "[gMASK]sop你好"
    assert load("chatglm2").decode(ids) == "你好"


@pytest.mark.parametrize("kind", FILES)
def test_padded_batches(kind, load):
    """Mask or positions of a batch are not those that the official tokenizer gives."""
    case = recorded(kind)["padded"]
    batch = load(kind)(case["texts"], return_tensors="pt", padding=True)
    assert batch["input_ids"].tolist() == case["input_ids"]
    assert batch["position_ids"].tolist() == case["position_ids"]
    assert batch["attention_mask"].long().tolist() == case["attention_mask"]
    assert batch["attention_mask"].dtype == (torch.bool if kind == "chatglm" else torch.int64)


@pytest.mark.parametrize("kind", FILES)
def test_ids_are_those_of_openglm(kind, load, official_tokenizers):
    """A model is asked otherwise through transformers than through openglm itself."""
    tokenizer = load(kind)
    ours = open_tokenizer(kind, official_tokenizers / VOCABULARIES[kind][0])
    assert tokenizer.core.kind == kind
    text = "He said [gMASK] <|user|> </s> [MASK] sop 你好"
    assert tokenizer.encode(text, add_special_tokens=False) == ours.encode(text)
    spelled = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)
    assert spelled == ours.encode(text, special=True)
    for command in ours.special.tokens:
        assert tokenizer.get_command(command.text) in {
            token.id for token in ours.special.tokens if token.text == command.text
        }
        assert tokenizer.convert_ids_to_tokens(command.id) in ours.special.texts.values()
    assert tokenizer.get_command("<eos>") == tokenizer.eos_token_id
    assert len(tokenizer) == tokenizer.vocab_size == ours.vocab_size
    assert tokenizer.padding_side == "left"
    with pytest.raises(TokenizerError, match="no command token"):
        tokenizer.get_command("<nothing>")
    with pytest.raises(TokenizerError, match="cannot be added"):
        tokenizer.add_tokens(["<new>"])


def test_ids_of_special_tokens(load):
    """`generate` stops at the wrong token, or pads with one that counts."""
    first, later = load("chatglm"), load("chatglm2")
    ends = (first.bos_token_id, first.eos_token_id, first.pad_token_id, first.mask_token_id)
    assert ends == (130004, 130005, 3, 130000)
    assert (first.gmask_token_id, first.end_token_id) == (130001, 2)
    assert (later.eos_token_id, later.pad_token_id, later.unk_token_id) == (2, 0, 0)


def test_roles_on_demand(folder):
    """`encode_special_tokens=True` of ChatGLM3 does nothing, or more than roles."""
    path, _ = folder("chatglm3")
    tokenizer = AutoTokenizer.from_pretrained(path, encode_special_tokens=True)
    for row in recorded("chatglm3")["rows"]:
        assert tokenizer.encode(row["text"]) == row["ids_encode_special_tokens"], row["text"]


def test_pairs(load):
    """Training scripts put the answer behind another prefix or end."""
    (pair,) = recorded("chatglm")["pairs"]
    assert load("chatglm").encode(pair["a"], pair["b"]) == pair["ids"]
    later = load("chatglm2")
    a, b = (later.encode(text, add_special_tokens=False) for text in ("你好", "世界"))
    assert later.encode("你好", "世界") == [64790, 64792, *a, *b, 2]


def test_chat_inputs(load):
    """ChatGLM2's prompt or ChatGLM3's chat input is not the official one."""
    for chat in recorded("chatglm2")["chats"]:
        assert load("chatglm2").build_prompt(chat["query"], chat["history"]) == chat["prompt"]
    for chat in recorded("chatglm3")["chats"]:
        asked = load("chatglm3").build_chat_input(chat["query"], chat["history"], chat["role"])
        assert asked["input_ids"].tolist() == [chat["ids"]]
        turns = [*chat["history"], {"role": chat["role"], "content": chat["query"]}]
        options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
        asked = load("chatglm3").apply_chat_template(turns, return_tensors="pt", **options)
        assert asked["input_ids"].tolist() == [chat["ids"]]
        assert asked["position_ids"].tolist() == [list(range(len(chat["ids"])))]
        left_open = load("chatglm3").apply_chat_template(turns)
        assert left_open["input_ids"] == chat["ids"][:-1]


def test_conversations_to_train_on(load):
    """What is learned as an answer does not stand where `chat` will ask for one."""
    turns = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    for kind in ("chatglm", "chatglm2"):
        tokenizer = load(kind)
        asked = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
        whole = tokenizer.apply_chat_template(turns)["input_ids"]
        answer = [*tokenizer.core.encode("好"), tokenizer.eos_token_id]
        assert whole == asked + answer
    batch = tokenizer.apply_chat_template([turns, turns[:1]], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, len(whole))
    with pytest.raises(RequestError, match="tools"):
        tokenizer.apply_chat_template(turns, tools=[{"name": "t"}])


@pytest.mark.parametrize("kind", [*FILES, "codegeex2"])
def test_saved_and_loaded_again(kind, load, tmp_path):
    """A saved tokenizer is another one, or its vocabulary file was rewritten."""
    tokenizer = load(kind)
    tokenizer.save_pretrained(tmp_path)
    (name, path), *_ = tokenizer.core.files().items()
    assert (tmp_path / name).read_bytes() == path.read_bytes()
    again = type(tokenizer).from_pretrained(tmp_path)
    assert (type(again), again.core.kind) == (type(tokenizer), kind)
    text = "你好，世界！Hello 123"
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.tokenize(text) == tokenizer.tokenize(text)
    ids = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(text))
    assert ids == tokenizer.encode(text, add_special_tokens=False)
    assert again.convert_tokens_to_string(again.tokenize("你好 a")) == "你好 a"
