"""Conversations from files, and what of them is learned."""

from __future__ import annotations

import json

import pytest

from helpers_hf import network_config
from helpers_models import tiny_config
from helpers_serve import small_tokenizer
from openglm.chat.messages import Message
from openglm.data.conversations import ConversationsConfig, read_conversations
from openglm.errors import ConfigError, DataError
from openglm.train.supervised import Epochs, lay_out, supervise

ASKED = [Message("user", "hi"), Message("assistant", "hello")]


def read(folder, lines, **settings):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "told.jsonl").write_text(text, encoding="utf-8")
    return read_conversations(ConversationsConfig(path="told.jsonl", **settings), folder)


@pytest.mark.parametrize(
    ("line", "settings"),
    [
        (
            {
                "messages": [
                    {"role": "user", "content": "hi"},
                    {"role": "assistant", "content": "hello"},
                ]
            },
            {},
        ),
        (
            {
                "conversations": [
                    {"from": "human", "value": "hi"},
                    {"from": "gpt", "value": "hello"},
                ]
            },
            {},
        ),
        ({"instruction": "hi", "input": "", "output": "hello", "history": []}, {}),
        (
            {"content": "hi", "summary": "hello", "rest": 1},
            {"shape": "columns", "prompt": "content", "answer": "summary"},
        ),
    ],
)
def test_every_shape(tmp_path, line, settings):
    """A shape that people have is refused, or read as other messages."""
    (found,) = read(tmp_path, ["", line], **settings)
    assert found.messages == ASKED
    assert found.line == 2


def test_what_else_a_line_may_have(tmp_path):
    """History, a system message or tools are lost."""
    (found,) = read(
        tmp_path,
        [
            {
                "instruction": "a",
                "input": "b",
                "output": "c",
                "history": [["q", "r"]],
                "system": "s",
            }
        ],
    )
    assert [(m.role, m.content) for m in found.messages] == [
        *(("system", "s"), ("user", "q"), ("assistant", "r")),
        *(("user", "a\nb"), ("assistant", "c")),
    ]
    tool = {"name": "f", "parameters": {}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    (found,) = read(tmp_path, [{"messages": said, "tools": [tool]}])
    assert found.messages[0].tools == (tool,)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": []}, "line 2: there are no messages"),
        ({"messages": [{"role": "user", "content": "x"}]}, "line 2: it has no answer"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "line 2: message 0 has the role 'bot'"),
        ({"messages": [{"role": "assistant", "content": " "}]}, "line 2: .* is empty"),
        ({"messages": [{"role": "assistant", "content": "\ud800"}]}, "line 2: .*surrogate"),
        ({"messages": [{"role": "assistant", "content": "x", "tool_calls": []}]}, "tool_calls"),
        ("{", "line 2 is not JSON"),
    ],
)
def test_lines_that_are_none(tmp_path, line, message):
    """One line in a million ends the run after hours, or is skipped without a word."""
    with pytest.raises(DataError, match=message):
        read(tmp_path, [{"messages": [{"role": "assistant", "content": "x"}]}, line])


def test_all_problems_are_told_at_once(tmp_path):
    """Each is found by another run."""
    bad = {"messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(DataError, match="30 of 30 lines") as failed:
        read(tmp_path, [bad] * 30)
    assert str(failed.value).count("line ") == 20


def test_other_spellings_of_sharegpt(tmp_path):
    """Tools are dropped without a word, a role that is no text ends in a traceback."""
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    (found,) = read(tmp_path, [{"conversations": turns}])
    assert found.messages == ASKED
    bad = [
        {"conversations": [{"from": ["human"], "value": "x"}]},
        {"conversations": [{"from": "gpt", "value": "x"}], "tools": [{"name": "f"}]},
        {"conversations": ["x"]},
    ]
    with pytest.raises(DataError, match="3 of 3 lines"):
        read(tmp_path, bad)


def test_files_that_are_none(tmp_path):
    """A wrong setting ends in a traceback."""
    with pytest.raises(DataError, match="no shape known"):
        read(tmp_path, [{"q": "x", "a": "y"}])
    with pytest.raises(ConfigError, match="needs both"):
        read(tmp_path, [], shape="columns", prompt="q")
    with pytest.raises(DataError, match="no file"):
        read_conversations(ConversationsConfig(path="none.jsonl"), tmp_path)
    with pytest.raises(DataError, match="holds no conversations"):
        read(tmp_path, [""])


LONG = [*ASKED, Message("user", "how are you"), Message("assistant", "fine")]


@pytest.mark.parametrize("kind", ["chatglm3", "glm4"])
def test_all_answers_of_a_conversation(tmp_path, kind):
    """Questions are learned, an answer or its end is not, or the order of roles is another."""
    tokenizer = small_tokenizer(kind, tmp_path)
    (found,) = lay_out(LONG, tokenizer, network_config("chatglm3", tokenizer.vocab_size))
    special = tokenizer.special
    user, end = special.get("user").id, special.get("eos").id
    newline = tokenizer.encode("\n")
    expected = [
        *(*newline, *tokenizer.encode("hello"), user),
        *(*newline, *tokenizer.encode("fine"), end),
    ]
    assert found.targets[found.loss_mask == 1].tolist() == expected
    assert found.input_ids[1:].tolist() == found.targets[:-1].tolist()
    assert found.position_ids.tolist() == list(range(len(found.input_ids)))


def test_positions_are_those_of_the_engine(mini):
    """A model is trained at other positions than those at which it will write."""
    config = tiny_config(vocab_size=mini.vocab_size)
    (found,) = lay_out(ASKED, mini, config)
    context = [mini.special.cls_id, *mini.encode("hi"), mini.special.gmask_id]
    answer = mini.encode("hello")
    count = len(answer) + 1
    assert found.input_ids.tolist() == [*context, mini.special.sop_id, *answer]
    assert found.targets[len(context) :].tolist() == [*answer, mini.special.eop_id]
    places = [*range(len(context)), *[len(context) - 1] * count]
    assert found.position_ids.tolist() == places
    assert found.block_position_ids.tolist() == [0] * len(context) + [*range(1, count + 1)]
    assert found.context_length == len(context)
    assert found.loss_mask.tolist() == [0] * len(context) + [1] * count


def test_a_blank_is_an_answers_place(mini):
    """A question with a blank is continued instead of filled."""
    told = [Message("user", "the [MASK] sat."), Message("assistant", "cat")]
    config = tiny_config(vocab_size=mini.vocab_size)
    (found,) = lay_out(told, mini, config)
    assert mini.special.mask_id in found.input_ids
    assert mini.special.gmask_id not in found.input_ids
    with pytest.raises(DataError, match="2 blanks"):
        lay_out(
            [Message("user", "[MASK] [MASK]"), told[1]],
            mini,
            tiny_config(vocab_size=mini.vocab_size),
        )


def test_no_conversations_for_models_without(mini):
    """Earlier turns are dropped without a word."""
    with pytest.raises(DataError, match="not made for conversations"):
        lay_out(LONG, mini, tiny_config(vocab_size=mini.vocab_size))


def test_what_the_model_cannot_have_is_told_by_line(tmp_path, mini):
    """A conversation of the wrong form ends the run without a word on where it is."""
    line = {"instruction": "hi", "output": "hello"}
    told = read(tmp_path, [line, line | {"system": "be brief"}])
    with pytest.raises(DataError, match="line 2: this model was not made for conversations"):
        supervise(told, mini, tiny_config(vocab_size=mini.vocab_size), 64)


def test_an_answer_beyond_the_models_positions_is_too_long(tmp_path, mini):
    """It ends the run with a message on a setting that nobody made."""
    lines = [
        {"instruction": "hi", "output": "hello"},
        {"instruction": "hi", "output": "hello " * 300},
    ]
    told = read(tmp_path, lines)
    found = supervise(told, mini, tiny_config(vocab_size=mini.vocab_size), 4096)
    assert found.too_long == [2]
    tokenizer = small_tokenizer("chatglm3", tmp_path)
    found = supervise(told, tokenizer, network_config("chatglm3", tokenizer.vocab_size), 4096)
    assert found.too_long == [2]


def test_robertas_blank(roberta):
    """[MASK] is spelled in another way there, and the question is continued instead."""
    told = [Message("user", "the [MASK] sat."), Message("assistant", "cat")]
    (found,) = lay_out(told, roberta, tiny_config(vocab_size=300))
    assert roberta.special.mask_id in found.input_ids


def test_long_ones_are_left_out_whole(tmp_path, mini):
    """An answer is learned without its end, or nobody learns that examples are missing."""
    lines = [
        {"instruction": "hi", "output": "hello"},
        {"instruction": "hi", "output": "hello " * 100},
    ]
    told = read(tmp_path, lines)
    config = tiny_config(vocab_size=mini.vocab_size, max_position_embeddings=2048)
    found = supervise(told, mini, config, 64)
    assert (len(found.examples), found.too_long) == (1, [2])
    with pytest.raises(DataError, match="all 1 conversations"):
        supervise(told[1:], mini, config, 64)


def test_each_example_once_in_an_epoch(mini):
    """Some are never seen, others twice, or each epoch has the same order."""
    config = tiny_config(vocab_size=mini.vocab_size, max_position_embeddings=512)
    examples = []
    for number in range(37):
        told = [Message("user", "hi"), Message("assistant", f"{number} " * (number + 1))]
        examples += lay_out(told, mini, config)
    epochs = Epochs(examples, 4, seed=1)
    assert epochs.num_batches == 10
    firsts = []
    for epoch in range(2):
        batches = [epochs(epoch * 10 + place) for place in range(10)]
        rows = [tuple(row) for batch in batches for row in batch.input_ids if row.any()]
        trimmed = [tuple(t for t in row if t) for row in rows]
        assert sorted(trimmed) == sorted(tuple(int(t) for t in e.input_ids if t) for e in examples)
        firsts.append(trimmed)
    assert firsts[0] != firsts[1]
    assert (epochs(3).input_ids == Epochs(examples, 4, seed=1)(3).input_ids).all()
    padded = sum(epochs(place).num_tokens for place in range(10))
    assert padded < 2.5 * sum(len(example.input_ids) for example in examples)
