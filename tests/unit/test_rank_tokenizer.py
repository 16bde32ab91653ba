"""GLM-4's tokenizer by ranks and CodeGeeX's runs of spaces, on small vocabularies."""

from __future__ import annotations

import base64
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_data import BPE_MERGES, byte_alphabet, write_bpe
from openglm.errors import TokenizerError
from openglm.tokenizers import find_tokenizer
from openglm.tokenizers.codegeex import CodeGeeXTokenizer, clean_up
from openglm.tokenizers.glm4 import GLM4Tokenizer

TOKENS = [bytes([byte]) for byte in range(256)]
TOKENS += [b"ab", b"bc", b"abc", b" a", b"aa", b"aaa", b"12", "中".encode(), b"\n\n"]


def write_ranks(folder: Path, tokens: list[bytes]) -> Path:
    path = folder / "tokenizer.model"
    lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens))
    path.write_text("".join(lines))
    return path


@pytest.fixture(scope="module")
def glm4(tmp_path_factory) -> GLM4Tokenizer:
    return GLM4Tokenizer(write_ranks(tmp_path_factory.mktemp("glm4"), TOKENS))


@pytest.fixture(scope="module")
def codegeex(tmp_path_factory) -> CodeGeeXTokenizer:
    tokens = [*byte_alphabet(), *("".join(pair) for pair in BPE_MERGES), "<|endoftext|>"]
    return CodeGeeXTokenizer(write_bpe(tmp_path_factory.mktemp("codegeex"), tokens))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("abc", [258]),  # a whole word
        ("abcx", [258, 120]),  # "ab" has a lower rank than "bc"
        ("xbc", [120, 257]),
        ("aaaa", [260, 260]),  # leftmost first
        ("aaaaa", [260, 261]),
        ("b a", [98, 259]),
        ("1212", [262, 49, 50]),  # at most three digits to a word: 121, 2
        ("中", [263]),
        ("国", [229, 155, 189]),
        ("a\n\nb", [97, 264, 98]),
    ],
)
def test_lowest_rank_joins_first(glm4, text, ids):
    """GLM-4 reads other tokens than it was trained on."""
    assert glm4.encode(text) == ids
    assert glm4.decode(glm4.encode(text)) == text


@given(st.text())
def test_ranks_are_lossless(glm4, text):
    """Some character does not survive."""
    assert glm4.decode(glm4.encode(text)) == text


@given(st.text(alphabet="abc12 \n", max_size=60))
def test_joining_equals_the_plain_rule(glm4, text):
    """The fast way of joining takes another path than "lowest rank first, leftmost first"."""
    for word, _ in glm4.splitter.pre_tokenize_str(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            unions = [(glm4.ranks.get(a + b), i) for i, (a, b) in enumerate(pairwise(parts))]
            known = [(rank, i) for rank, i in unions if rank is not None]
            if not known:
                break
            place = min(known)[1]
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        assert list(glm4._join(word.encode())) == [glm4.ranks[part] for part in parts]


def test_a_long_text_without_spaces_is_joined_quickly(glm4):
    """A page of Chinese without punctuation takes minutes: one request stops a server."""
    text = "中国ab" * 20000
    assert glm4.decode(glm4.encode(text)) == text


def test_glm4_command_ids_follow_the_ranks(glm4):
    """Roles and masks have other ids than in the weights (151329 ranks: [gMASK] 151331)."""
    first = len(TOKENS)
    ids = {token.role: token.id - first for token in glm4.special.tokens}
    assert (ids["eos"], ids["gmask"], ids["sop"]) == (0, 2, 4)
    assert (ids["system"], ids["user"], ids["assistant"], ids["observation"]) == (6, 7, 8, 9)
    assert glm4.encode("<|user|>") != [first + 7]
    assert glm4.encode("<|user|>", special=True) == [first + 7]


def test_a_rank_file_is_recognised(glm4, tmp_path):
    """GLM-4's `tokenizer.model` is opened as sentencepiece, which has the same file name."""
    (tmp_path / "tokenizer.model").write_bytes(glm4.path.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "ChatGLM4Tokenizer"}')
    assert find_tokenizer(tmp_path).kind == "glm4"
    (tmp_path / "tokenizer_config.json").unlink()
    assert find_tokenizer(tmp_path).kind == "glm4"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: [*lines[:3], "??? 3", *lines[4:]], "line 4: not a token in base64"),
        (lambda lines: [*lines[:3], lines[3] + " 9", *lines[4:]], "line 4: not a token in base64"),
        (lambda lines: [*lines[:3], *lines[4:]], "line 4: rank 4, not 3"),
        (lambda lines: [*lines[:3], lines[2][:-1] + "3", *lines[4:]], "line 4: .*a token twice"),
        (lambda lines: lines[:200], "lacks some of the 256 single bytes"),
    ],
)
def test_a_damaged_rank_file_is_refused(change, said, glm4, tmp_path):
    """A download that broke off gives wrong ids silently."""
    path = tmp_path / "tokenizer.model"
    path.write_text("\n".join(change(glm4.path.read_text().splitlines())))
    with pytest.raises(TokenizerError, match=said):
        GLM4Tokenizer(path)


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("a  b", [2]),
        ("a" + " " * 10 + "b", [10]),
        ("a" + " " * 23 + "b", [10, 10, 3]),
        ("  \n    x", [2, 4]),
        ("a b", []),
    ],
)
def test_runs_of_spaces_are_one_token_each(codegeex, text, runs):
    """Indentation costs ten times the tokens, and the model has never seen it so."""
    ids = codegeex.encode(text)
    found = [n for i in ids for n, token in codegeex.run_ids.items() if token == i]
    assert found == runs
    assert codegeex.decode(ids) == text


def test_codegeex_folder_is_recognised(codegeex, tmp_path):
    """CodeGeeX's vocabulary is taken for GLM-10B's, and code is written inside a blank."""
    for name, path in codegeex.files().items():
        (tmp_path / name).write_bytes(path.read_bytes())
    (tmp_path / "added_tokens.json").write_text('{"<|extratoken_1|>": 50257}')
    (tmp_path / "codegeex_13b.pt").write_bytes(b"")
    assert find_tokenizer(tmp_path).kind == "codegeex"
    assert find_tokenizer(tmp_path / "codegeex_13b.pt").kind == "codegeex"
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    assert find_tokenizer(tmp_path).kind == "codegeex"


def test_a_space_left_over_joins_the_next_word(codegeex):
    """A run of eleven ends in a lone space, which belongs to the word behind it."""
    ids = codegeex.encode("a" + " " * 11 + "the")
    assert ids[1] == codegeex.run_ids[10]
    assert ids[2:] == codegeex.encode(" the")


@given(st.text())
def test_codegeex_is_lossless(codegeex, text):
    """A program comes back changed."""
    assert codegeex.decode(codegeex.encode(text)) == text


def test_codegeex_extra_tokens(codegeex):
    """The vocabulary of 50,400 ids: two spaces are the tenth of 143 extra tokens."""
    text_size = codegeex.num_text_tokens
    assert codegeex.vocab_size == text_size + 143
    assert codegeex.run_ids[2] == text_size + 9
    assert codegeex.encode("<|extratoken_10|>", special=True) == [text_size + 9]
    assert codegeex.encode("<|extratoken_10|>") != [text_size + 9]


def test_the_official_clean_up_is_lossy(codegeex, monkeypatch):
    """Published CodeGeeX numbers were made with it; it must be there to compare, and off."""
    text = "a != b , end = ' '"
    assert clean_up(text) == "a!= b, end =''"
    ids = codegeex.encode(text)
    assert codegeex.decode(ids) == text
    monkeypatch.setattr(codegeex, "clean_up_spaces", True)
    assert codegeex.decode(ids) == clean_up(text)
