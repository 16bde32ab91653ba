"""The tokenizer inside a GGUF file: ids stay, command tokens are told apart, prompts are ours."""

from __future__ import annotations

import re

import gguf
import jinja2
import pytest

from helpers_gguf import causal_config, metadata, small_tokenizer
from helpers_models import random_model
from openglm.chat import as_messages, prompt_ids
from openglm.chat.jinja import JINJA
from openglm.checkpoints import export_gguf
from openglm.checkpoints.gguf_vocab import merges, spelled
from openglm.errors import TokenizerError

KINDS = ["chatglm2", "chatglm3", "codegeex2", "glm4"]
SPARE = 7
"""Rows of the embedding above the last id; the released models have some too."""
ASKED = {
    "question": [{"role": "user", "content": "people of philosophy"}],
    "history": [
        {"role": "system", "content": "白日依山尽，"},
        {"role": "user", "content": "two\nlines"},
        {"role": "assistant", "content": "an answer"},
        {"role": "user", "content": " three "},
    ],
}
ASKED["tools"] = [
    *ASKED["history"],
    {"role": "assistant", "content": "double(x)", "metadata": "double"},
    {"role": "observation", "content": "4"},
    {"role": "user", "content": ""},
]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request, tmp_path_factory):
    return small_tokenizer(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def fields(tokenizer, tmp_path_factory):
    """The keys of a file with this tokenizer, without their prefix."""
    model = random_model(causal_config(vocab_size=tokenizer.vocab_size + SPARE))
    target = tmp_path_factory.mktemp("gguf")
    file = export_gguf(target, model.config, model.state_dict(), tokenizer=tokenizer)
    return {
        key.removeprefix("tokenizer."): value
        for key, value in metadata(file.path).items()
        if key.startswith("tokenizer.")
    }


def test_every_id_is_the_token_it_was(tokenizer, fields):
    """The model reads other words than were typed."""
    tokens, types = fields["ggml.tokens"], fields["ggml.token_type"]
    assert len(tokens) == len(types) == len(set(tokens)) == tokenizer.vocab_size + SPARE
    for token_id, text in tokenizer.special.texts.items():
        if token_id >= tokenizer.num_text_tokens:
            assert tokens[token_id] == spelled(text)
            assert types[token_id] == gguf.TokenType.CONTROL
    for token_id in range(tokenizer.vocab_size, tokenizer.vocab_size + SPARE):
        assert types[token_id] == gguf.TokenType.UNUSED
    if tokenizer.kind == "glm4":
        letters = {i for i in range(256) if len(tokens[i]) == 1}
        assert len(letters) == 256
        assert set(types[: tokenizer.num_text_tokens]) == {gguf.TokenType.NORMAL}
    else:
        ids = range(tokenizer.num_text_tokens)
        assert [tokenizer.model.piece_to_id(tokens[i]) for i in ids] == list(ids)
        assert fields["ggml.scores"][: len(ids)] == [tokenizer.model.get_score(i) for i in ids]
        kinds = {t: [i for i in ids if types[i] == t] for t in set(types)}
        assert kinds[gguf.TokenType.UNKNOWN] == [0]
        assert kinds[gguf.TokenType.CONTROL] == [1, 2]
        assert kinds[gguf.TokenType.BYTE] == [i for i in ids if tokenizer.model.is_byte(i)]


def test_special_ids_and_flags(tokenizer, fields):
    """An answer does not stop, or every prompt begins with a token that no prompt had."""
    special = tokenizer.special
    expected = {
        "ggml.eos_token_id": special.eos_id,
        "ggml.padding_token_id": special.pad_id,
        "ggml.add_bos_token": False,
        "ggml.add_eos_token": False,
    }
    if special.has("user"):
        expected["ggml.eot_token_id"] = special.get("user").id
        expected["ggml.eom_token_id"] = special.get("observation").id
    if tokenizer.kind == "glm4":
        expected |= {"ggml.model": "gpt2", "ggml.pre": "glm4"}
    else:
        expected |= {"ggml.model": "llama", "ggml.unknown_token_id": 0}
        expected["ggml.add_space_prefix"] = tokenizer.kind != "codegeex2"
    lists = {"ggml.tokens", "ggml.token_type", "ggml.scores", "ggml.merges", "chat_template"}
    assert {key: value for key, value in fields.items() if key not in lists} == expected
    assert fields.get("chat_template") == JINJA.get(tokenizer.kind)


@pytest.mark.parametrize(
    ("kind", "asked"),
    [(kind, asked) for kind in JINJA for asked in ASKED if (kind, asked) != ("chatglm2", "tools")],
)
def test_templates_write_our_prompts(kind, asked, tmp_path):
    """The model is asked in another form than it was trained on.

    llama.cpp encodes the text between two command tokens in one piece, and so does this test.
    """
    tokenizer = small_tokenizer(kind, tmp_path)
    prompt = jinja2.Template(JINJA[kind]).render(messages=ASKED[asked], add_generation_prompt=True)
    commands = {spelled(token.text): token.id for token in tokenizer.special.tokens}
    fragments = re.split("(" + "|".join(map(re.escape, commands)) + ")", prompt)
    found = [
        token_id
        for fragment in fragments
        for token_id in (
            [commands[fragment]] if fragment in commands else tokenizer.encode(fragment)
        )
    ]
    assert found == prompt_ids(tokenizer, as_messages(ASKED[asked]))


def test_tool_is_an_observation():
    """OpenAI clients write `tool`; `<|tool|>` would be plain text to the model."""
    messages = [{"role": "tool", "content": "4"}]
    found = [
        jinja2.Template(JINJA[kind]).render(messages=messages) for kind in ("chatglm3", "glm4")
    ]
    assert found == ["[gMASK]<sop><|observation|>\n 4", "[gMASK]<sop><|observation|>\n4"]


@pytest.mark.parametrize("kind", JINJA)
def test_unknown_roles_are_refused(kind):
    """A message of a role that the model does not have is left out in silence."""

    def raise_exception(message):
        raise ValueError(message)

    template = jinja2.Template(JINJA[kind])
    messages = [{"role": "developer", "content": ""}]
    with pytest.raises(ValueError, match="no role developer"):
        template.render(messages=messages, raise_exception=raise_exception)


def test_words_are_no_command_tokens():
    """Every "people" and "philosophy" in a chat becomes a command token."""
    assert [spelled(t) for t in ("sop", "eop", "[MASK]", "</s>", "<sop>")] == [
        "<sop>",
        "<eop>",
        "[MASK]",
        "</s>",
        "<sop>",
    ]


def test_merges_of_ranks():
    """A word is cut otherwise, where two tokens meet that do so in no training."""
    ranks = {token: rank for rank, token in enumerate((b"a", b"b", b"c", b"ab", b"bc", b"abc"))}
    assert list(merges(ranks)) == [(b"a", b"b"), (b"b", b"c"), (b"a", b"bc"), (b"ab", b"c")]


def test_a_tokenizer_of_another_model(tmp_path):
    """llama.cpp would look up embeddings that are not there."""
    model = random_model(causal_config())
    tokenizer = small_tokenizer("glm4", tmp_path)
    with pytest.raises(TokenizerError, match=f"{tokenizer.vocab_size} ids, the network only 110"):
        export_gguf(tmp_path, model.config, model.state_dict(), tokenizer=tokenizer)
