"""GLM-4's tokenizer by ranks and CodeGeeX's runs of spaces, on small vocabularies."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers_data import BPE_MERGES, RANKED, byte_alphabet, write_bpe, write_ranks
from openglm.errors import TokenizerError
from openglm.tokenizers import find_tokenizer
from openglm.tokenizers.bpe import byte_characters
from openglm.tokenizers.codegeex import CodeGeeXTokenizer, clean_up
from openglm.tokenizers.glm4 import GLM4Tokenizer
from openglm.tokenizers.special import layout


@pytest.fixture(scope="module")
def glm4(tmp_path_factory) -> GLM4Tokenizer:
    return GLM4Tokenizer(write_ranks(tmp_path_factory.mktemp("glm4"), RANKED))


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
    first = len(RANKED)
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


def write_json(folder, tokens=RANKED, **changes):
    """The same vocabulary as transformers has it."""
    names = byte_characters()
    vocabulary = {"".join(names[b] for b in token): rank for rank, token in enumerate(tokens)}
    commands = layout("glm4").resolve(len(tokens)).tokens
    content = {
        "added_tokens": [{"id": token.id, "content": token.text} for token in commands],
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(content | changes))
    return path


def test_a_tokenizer_json_gives_the_same_ids(glm4, tmp_path):
    """GLM-4 in the layout of transformers has no text, or other ids."""
    write_json(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "PreTrainedTokenizerFast"}'
    )
    found = find_tokenizer(tmp_path)
    assert found.kind == "glm4"
    assert found.special == glm4.special
    for text in ("abc aab 12中", "<|user|>", "x\n\ny"):
        assert found.encode(text) == glm4.encode(text)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"vocab": {"a": 0}}}, "lacks some of the 256 single bytes"),
        ({"model": {"vocab": {"中": 0}}}, "no byte-level vocabulary"),
        ({"model": {"vocab": {"a": "x"}}}, "no byte-level vocabulary"),
        ({"model": {"vocab": {"a": 5}}}, "have gaps"),
    ],
)
def test_a_damaged_tokenizer_json_is_refused(changes, said, tmp_path):
    """A vocabulary of another kind gives wrong ids silently."""
    write_json(tmp_path, **changes)
    with pytest.raises(TokenizerError, match=said):
        find_tokenizer(tmp_path)


def test_the_fast_tokenizer_of_another_model_does_not_stop_a_load(tmp_path):
    """A folder with a foreign tokenizer.json cannot be loaded at all."""
    write_json(tmp_path, added_tokens=[])
    assert find_tokenizer(tmp_path) is None


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
