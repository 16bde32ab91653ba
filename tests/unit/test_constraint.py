"""Constrained writing: whatever the weights, the text parses, for every kind of tokenizer."""

from __future__ import annotations

import json
import re
import sys
import threading

import pytest
import torch

from helpers_models import random_model, scripted_model, tiny_config
from openglm.engine import constraint
from openglm.engine.constraint import GrammarCompiler, drops_space
from openglm.errors import RequestError
from openglm.language_model import LanguageModel
from openglm.tokenizers.chatglm import ChatGLMTokenizer
from openglm.tokenizers.chatglm2 import ChatGLM2Tokenizer
from openglm.tokenizers.glm4 import GLM4Tokenizer

pytest.importorskip("xgrammar", reason="the extra `grammar` is not installed")

ROWS = 432
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["cat", "fox", "中文"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
HOT = {"temperature": 3.0, "top_k": 0, "max_tokens": 250}


@pytest.fixture(scope="module")
def model(mini):
    config = tiny_config(vocab_size=ROWS, max_position_embeddings=300)
    return LanguageModel(random_model(config, seed=3), mini, "random")


@pytest.mark.parametrize("seed", range(5))
def test_json_fits_its_schema(seed, model):
    """The text is no JSON, or other JSON than the schema allows."""
    done = model.generate("the cat", json_schema=SCHEMA, seed=seed, **HOT)
    assert done.finish_reason == "stop"
    value = json.loads(done.text)
    assert list(value) == ["name", "age", "tags"]
    assert value["name"] in ("cat", "fox", "中文")
    assert 0 <= value["age"] <= 99
    assert len(value["tags"]) <= 2


@pytest.mark.parametrize("seed", range(5))
def test_text_matches_its_pattern_as_a_whole(seed, model):
    """A text begins like the pattern and then goes on."""
    pattern = r"[a-c]{2,4}(-[0-9]+é){1,2}"
    done = model.generate("the cat", regex=pattern, seed=seed, **{**HOT, "max_tokens": 290})
    assert done.finish_reason == "stop"
    assert re.fullmatch(pattern, done.text)


def test_each_blank_matches(model):
    """Only the first blank is held to the pattern, or the second goes on where it stopped."""
    filled = model.fill("a [MASK] and [MASK]", regex="(ab)+c", **{**HOT, "max_tokens": 60})
    for blank in filled.blanks:
        assert re.fullmatch("(ab)+c", blank.text)


def test_a_model_that_wants_something_else_is_held_to_the_grammar(mini):
    """The grammar filters only what is likely anyway."""
    config = tiny_config(vocab_size=ROWS, hidden_size=48, intermediate_size=192)
    network = scripted_model(config, mini.encode("the river"), mini.special.eop_id)
    model = LanguageModel(network, mini, "scripted")
    grammar = 'root ::= item ("," item){2}\nitem ::= "x" | "yy"'
    text = model.fill("a [MASK]", grammar=grammar).blanks[0].text
    assert re.fullmatch("(x|yy)(,(x|yy)){2}", text)


@pytest.mark.parametrize("seed", range(4))
def test_one_of_the_choices_is_written(seed, model):
    """A choice with quotes, a line break or a control character is written differently."""
    choices = ['say "a\\n"', "b\nb", "é\x01🙂", "the"]
    done = model.generate("the cat", choice=choices, seed=seed, **HOT)
    assert done.text in choices


def test_a_text_ends_only_where_the_grammar_may(model):
    """An end token comes in the middle of the text, or none where it must."""
    ends = model.tokenizer.special.end_ids
    rule = GrammarCompiler(model.tokenizer, ROWS, ends).compile("regex", "ab?")
    a, b = (model.tokenizer.encode(letter)[0] for letter in "ab")
    for blank, expected in (([], {a}), ([a], ends | {b}), ([a, b], ends), ([], {a})):
        scores = torch.zeros(ROWS)
        rule(scores, blank)
        allowed = set((scores == 0).nonzero().flatten().tolist())
        single = {t for t in allowed if t in ends or model.tokenizer.decode([t]) in ("a", "b")}
        assert single == allowed - {t for t in allowed if model.tokenizer.decode([t]) == "ab"}
        assert single >= expected
        assert (allowed & ends == ends) == (expected & ends == ends)


def test_drafts_may_be_taken_back(model):
    """A rejected draft leaves the automaton in a wrong state."""
    rule = GrammarCompiler(model.tokenizer, ROWS, {400}).compile("regex", "[ab]{6}")
    a, b = (model.tokenizer.encode(letter)[0] for letter in "ab")
    for blank in ([a, b, a], [a, a], [a, a, b, b], []):
        scores, fresh = torch.zeros(ROWS), torch.zeros(ROWS)
        rule(scores, blank)
        GrammarCompiler(model.tokenizer, ROWS, {400}).compile("regex", "[ab]{6}")(fresh, blank)
        assert torch.equal(scores, fresh)
    with pytest.raises(RequestError, match="not what the text must match"):
        rule(torch.zeros(ROWS), [model.tokenizer.encode("z")[0]])


def walk(tokenizer, kind, value, seed):
    """A text of random tokens that a constraint allows."""
    size = tokenizer.vocab_size
    ends = {tokenizer.special.eos_id}
    rule = GrammarCompiler(tokenizer, size, ends).compile(kind, value)
    generator = torch.Generator().manual_seed(seed)
    blank: list[int] = []
    while len(blank) < 400:
        scores = torch.rand(size, generator=generator)
        rule(scores, blank)
        token = int(scores.argmax())
        if token in ends:
            return tokenizer.decode(blank)
        blank.append(token)
    raise AssertionError("no end")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["gpt2", "roberta", "trained_gpt2", "mini"])
def test_every_tokenizer_of_bytes_writes_what_it_must(name, seed, request):
    """The bytes of a vocabulary are wrong, so that the decoded text does not match."""
    tokenizer = request.getfixturevalue(name)
    pattern = r'\{"a": "[a-zé世🙂 ]{1,6}"\}'
    assert re.fullmatch(pattern, walk(tokenizer, "regex", pattern, seed))
    assert walk(tokenizer, "choice", (" yes", "no"), seed) in (" yes", "no")


def test_wordpieces_write_words(bert):
    """A tokenizer that puts spaces between words cannot be held to anything."""
    assert walk(bert, "regex", "(the|cat)( (the|cat)){2}", 0) in {
        f"{a} {b} {c}" for a in ("the", "cat") for b in ("the", "cat") for c in ("the", "cat")
    }


def test_the_space_in_front_of_sentencepiece_is_not_part_of_the_text(chinese):
    """A model of sentencepiece may not begin with the piece with which it begins all texts."""
    assert drops_space(chinese, chinese.spellings()) is False  # no piece is a space and a letter
    assert walk(chinese, "choice", ("黄河", "入流"), 0) in ("黄河", "入流")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("kind", ["chatglm", "icetk", "chatglm3", "codegeex2"])
def test_official_vocabularies(kind, seed, official_tokenizers):
    """Byte pieces, white space or the space in front are spelt wrongly for an official model."""
    tokenizer = {
        "chatglm": lambda: ChatGLMTokenizer(official_tokenizers / "chatglm6b_ice_text.model"),
        "icetk": lambda: ChatGLMTokenizer(official_tokenizers / "ice_text_v0_icetk.model", kind),
        "chatglm3": lambda: ChatGLM2Tokenizer(
            official_tokenizers / "chatglm2_chatglm3_tokenizer.model", kind
        ),
        "codegeex2": lambda: ChatGLM2Tokenizer(
            official_tokenizers / "codegeex2_tokenizer.model", kind
        ),
    }[kind]()
    assert drops_space(tokenizer, tokenizer.spellings()) == (kind != "codegeex2")
    pattern = r'\{"a":\n\t  "[a-z世𠮷]{1,6}"\}'
    assert re.fullmatch(pattern, walk(tokenizer, "regex", pattern, seed))
    assert walk(tokenizer, "choice", (" yes", "no"), seed) in (" yes", "no")


def test_the_vocabulary_of_glm4(tmp_path):
    """GLM-4's tokens are spelt wrongly."""
    import base64

    words = [*(bytes([b]) for b in range(256)), b' "', b'{"', "世".encode()]
    lines = (f"{base64.b64encode(word).decode()} {rank}" for rank, word in enumerate(words))
    path = tmp_path / "tokenizer.model"
    path.write_text("\n".join(lines))
    pattern = r'\{"a": "[世ab]{1,4}"\}'
    assert re.fullmatch(pattern, walk(GLM4Tokenizer(path), "regex", pattern, 0))


# ------------------------------------------------------------------ errors and limits


@pytest.mark.parametrize(
    ("kind", "value", "named"),
    [
        ("regex", "((a", "regex is not understood: .*parenthesis"),
        ("regex", r"(a)\1", "Backreference"),
        ("grammar", "root ::= x", 'Rule "x" is not defined'),
        ("json_schema", {"type": "fo"}, 'Unsupported type "fo"'),
        ("regex", "a" * 8193, "8193 characters; at most 8192"),
        ("grammar", "(" * 9000, "9000 characters"),
        ("choice", ["a" * 1000] * 66, "66000 characters; at most 65536"),
        ("json_schema", {"properties": {f"p{i}": {} for i in range(257)}}, "257 properties"),
    ],
)
def test_hostile_and_mistaken_constraints(kind, value, named, model):
    """A stranger's schema stops the process, or the message is one of C++."""
    with pytest.raises(RequestError, match=named) as caught:
        model.fill("a [MASK]", **{kind: value})
    assert ".cc" not in caught.value.message


def test_a_deep_schema_is_refused(model):
    """Recursion without end crosses the stack of C++."""
    schema: dict = {}
    for _ in range(70):
        schema = {"items": schema}
    with pytest.raises(RequestError, match="deeper than 64"):
        model.fill("a [MASK]", json_schema=schema)


def test_references_and_patterns_of_strangers(model):
    """What a stranger wrote stands in the log, or a pattern hides its length in a schema."""
    for reference in ("http://127.0.0.1/x.json", "file:///etc/passwd", "x\nERROR: forged"):
        with pytest.raises(RequestError, match="refers to"):
            model.fill("a [MASK]", json_schema={"items": {"$ref": reference}})
    texts = [{"type": "string", "pattern": "(a|b)?" * 700} for _ in range(2)]
    with pytest.raises(RequestError, match="patterns of 8400 characters"):
        model.fill("a [MASK]", json_schema={"anyOf": texts})


def test_slow_grammars_do_not_pile_up(model, monkeypatch):
    """Each schema that is refused for its slowness leaves a thread behind that goes on."""
    monkeypatch.setattr(constraint, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(constraint, "COMPILING", threading.BoundedSemaphore(1))
    with constraint.COMPILING, pytest.raises(RequestError, match="had to wait"):
        model.fill("a [MASK]", json_schema={"type": "string"})


def test_compiling_ends_in_time(model, monkeypatch):
    """A schema that compiles for minutes holds up all requests."""
    monkeypatch.setattr(constraint, "COMPILE_SECONDS", 0.0)
    monkeypatch.setattr(GrammarCompiler, "_compile", lambda *_: None)
    with pytest.raises(RequestError, match="not compiled after 0 s"):
        model.fill("a [MASK]", regex="a")


def test_matching_ends_in_time(model, monkeypatch):
    """An ambiguous grammar holds up all requests at every token."""
    monkeypatch.setattr(constraint, "STEP_SECONDS", -1.0)
    with pytest.raises(RequestError, match="for one token"):
        model.fill("a [MASK]", regex="a")


def test_settings_that_exclude_the_grammar_are_an_error(model):
    """A forbidden token is written because the grammar asks for it."""
    with pytest.raises(RequestError, match="nothing can be written"):
        model.fill("a [MASK]", regex="abc", bad_words=["a"])


def test_without_xgrammar_the_extra_is_named(mini, monkeypatch):
    """The user sees an ImportError and does not know what to install."""
    model = LanguageModel(random_model(tiny_config(vocab_size=ROWS)), mini, "random")
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    with pytest.raises(RequestError, match="xgrammar") as caught:
        model.fill("a [MASK]", regex="a")
    assert "openglm[grammar]" in caught.value.hint
