"""Prompts and answers of the chat models against recordings of their official code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from openglm.chat import as_messages, prompt_ids, read_reply
from openglm.tokenizers import open_tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
FILES = {
    "chatglm": ("chatglm6b", "chatglm6b_ice_text.model"),
    "chatglm2": ("chatglm2", "chatglm2_chatglm3_tokenizer.model"),
    "chatglm3": ("chatglm3", "chatglm2_chatglm3_tokenizer.model"),
}


def recorded(name):
    return json.loads((GOLDENS / name).read_text(encoding="utf-8"))


def conversation(chat):
    """A recorded chat as messages: pairs of texts, or dictionaries already."""
    messages = []
    for turn in chat["history"]:
        if isinstance(turn, dict):
            messages.append(turn)
        else:
            question, answer = turn
            messages += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer},
            ]
    return [*messages, {"role": chat.get("role", "user"), "content": chat["query"]}]


@pytest.mark.parametrize("kind", FILES)
def test_prompt_ids(kind, official_tokenizers):
    """The model is asked in other tokens than those it was trained to answer."""
    name, file = FILES[kind]
    tokenizer = open_tokenizer(kind, official_tokenizers / file)
    chats = recorded(f"tokenizer/{name}.json")["chats"]
    assert len(chats) >= 3
    for chat in chats:
        assert prompt_ids(tokenizer, as_messages(conversation(chat))) == chat["ids"], chat["query"]


def test_answers_of_chatglm6b():
    """Punctuation or the training date of an answer is not put right as officially."""
    for case in recorded("process_response_chatglm6b.json"):
        assert read_reply("chatglm", case["text"], []).content == case["out"]


def test_answers_of_chatglm2():
    """The training date of an answer is not put right, or punctuation is."""
    for case in recorded("process_response_chatglm2_3.json")["chatglm2"]:
        assert read_reply("chatglm2", case["text"], []).content == case["out"]


def test_answers_of_chatglm3():
    """A tool call is taken for an answer, or the conversation goes on without it."""
    for case in recorded("process_response_chatglm2_3.json")["chatglm3"]:
        asked = as_messages(case["history"])
        reply = read_reply("chatglm3", case["output"], asked)
        expected = case["content"]
        if isinstance(expected, str):
            assert (reply.tool, reply.content) == (None, expected)
        elif "parameters" in expected:
            assert (reply.tool, reply.arguments) == (expected["name"], expected["parameters"])
        else:
            found = (reply.tool, reply.content, reply.arguments)
            assert found == (expected["name"], expected["content"], None)
        added = [
            {"role": m.role, "metadata": m.metadata, "content": m.content} for m in reply.messages
        ]
        assert case["history"] + added == case["new_history"]
