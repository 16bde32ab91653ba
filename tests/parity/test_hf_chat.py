"""`model.chat` of old scripts: what is asked, and what comes back, as recorded from official code.

The networks are tiny and random, and their answers are scripted; the vocabularies are the real
ones, and without them these tests are skipped.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")
from transformers import AutoModel, AutoTokenizer, LogitsProcessor

import openglm.hf
from helpers_hf import write_folder
from openglm.errors import RequestError

GOLDENS = Path(__file__).parents[1] / "goldens" / "chatglm"
NAMES = {"chatglm": "chatglm6b", "chatglm2": "chatglm2", "chatglm3": "chatglm3"}
assert openglm.hf.register


class Script(LogitsProcessor):
    """Makes `generate` write these ids, and keeps the prompt that it began with."""

    def __init__(self, ids):
        self.ids, self.prompt = list(ids), None

    def __call__(self, input_ids, scores):
        if self.prompt is None:
            self.prompt = input_ids[0].tolist()
        place = input_ids.shape[1] - len(self.prompt)
        scores = torch.full_like(scores, -100.0)
        scores[:, self.ids[place]] = 100.0
        return scores


@pytest.fixture(scope="module")
def loaded(official_tokenizers, tmp_path_factory):
    made = {}

    def load(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("chat") / kind
            marker = write_folder(folder, kind, official_tokenizers)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
            model = AutoModel.from_pretrained(folder, trust_remote_code=True).float().eval()
            assert not marker.exists()
            made[kind] = tokenizer, model
        return made[kind]

    return load


def chats(kind):
    path = GOLDENS / "tokenizer" / f"{NAMES[kind]}.json"
    return json.loads(path.read_text(encoding="utf-8"))["chats"]


def as_history(kind, history):
    return history if kind == "chatglm3" else [tuple(turn) for turn in history]


@pytest.mark.parametrize("kind", NAMES)
def test_chat(kind, loaded):
    """The question is put otherwise, or answer and history come back in another form."""
    tokenizer, model = loaded(kind)
    for recorded in chats(kind):
        history = as_history(kind, recorded["history"])
        role = {"role": recorded["role"]} if "role" in recorded else {}
        script = Script([*tokenizer.core.encode("好,的"), tokenizer.eos_token_id])
        response, longer = model.chat(
            tokenizer, recorded["query"], history=history, logits_processor=[script], **role
        )
        assert script.prompt == recorded["ids"]
        expected = "好，的" if kind == "chatglm" else "好,的"
        assert response == expected
        if kind == "chatglm3":
            asked = {"role": recorded["role"], "content": recorded["query"]}
            answered = {"role": "assistant", "metadata": "", "content": expected}
            assert longer == [*history, asked, answered]
        else:
            assert longer == [*history, (recorded["query"], expected)]


@pytest.mark.parametrize("kind", NAMES)
def test_stream_chat(kind, loaded):
    """The stream skips text, ends with something else than `chat`, or shows half a character."""
    tokenizer, model = loaded(kind)
    script = Script([*tokenizer.core.encode("你好👋"), tokenizer.eos_token_id])
    steps = list(model.stream_chat(tokenizer, "hi", history=[], logits_processor=[script]))
    texts = [text for text, _ in steps]
    assert texts[-1] == "你好👋"
    assert all("\ufffd" not in text for text in texts)
    assert all(later.startswith(text) for text, later in pairwise(texts))
    ended = steps[-1][1][-1]
    assert ended == ("hi", "你好👋") or ended["content"] == "你好👋"


def test_streaming_on_the_cache_of_the_last_answer(loaded):
    """The second question is read without the first, or at the places of the first."""
    tokenizer, model = loaded("chatglm2")
    answer = [*tokenizer.core.encode("好"), tokenizer.eos_token_id]
    fed = []
    hook = model.transformer.register_forward_pre_hook(
        lambda module, inputs: fed.append((inputs[0][0].tolist(), inputs[1][0].tolist()))
    )
    options = {"return_past_key_values": True}
    *_, (_, history, past) = model.stream_chat(
        tokenizer, "你好", history=[], logits_processor=[Script(answer)], **options
    )
    cached = past.get_seq_length()
    assert cached == sum(len(ids) for ids, _ in fed)
    fed.clear()
    *_, (text, longer, _) = model.stream_chat(
        tokenizer,
        "再说一遍？",
        history=history,
        past_key_values=past,
        logits_processor=[Script(answer)],
        **options,
    )
    hook.remove()
    assert (text, len(longer)) == ("好", 2)
    turn = "\n\n[Round 2]\n\n问：再说一遍？\n\n答："
    ids, positions = fed[0]
    assert ids == tokenizer.core.encode(turn)[1:]
    assert positions == list(range(cached, cached + len(ids)))
    first, model_6b = loaded("chatglm")
    with pytest.raises(RequestError, match="cannot go on from a cache"):
        list(model_6b.stream_chat(first, "a", history=[("b", "c")], past_key_values=past))


def test_a_tool_call_of_chatglm3(loaded):
    """The call comes back as text, or its arguments were evaluated as a program."""
    tokenizer, model = loaded("chatglm3")
    history = [{"role": "system", "content": "tools:", "tools": [{"name": "t"}]}]
    call = tokenizer.core.encode("t\n```python\ntool_call(x=1)\n```")
    script = Script([*call, tokenizer.get_command("<|observation|>")])
    response, history = model.chat(tokenizer, "q", history, logits_processor=[script])
    assert response == {"name": "t", "parameters": {"x": 1}}
    assert history[-1]["metadata"].strip() == "t"
    script = Script([*tokenizer.core.encode("\n 3"), tokenizer.eos_token_id])
    response, history = model.chat(
        tokenizer, "3", history, role="observation", logits_processor=[script]
    )
    assert response == "3"
    assert [turn["role"] for turn in history] == [
        "system",
        "user",
        "assistant",
        "observation",
        "assistant",
    ]


def test_useless_numbers_end_in_the_safe_token(loaded):
    """A model that overflows in fp16 crashes the script instead of saying something."""
    tokenizer, model = loaded("chatglm2")

    class Overflow(LogitsProcessor):
        def __call__(self, input_ids, scores):
            return scores * torch.inf

    options = {"max_new_tokens": 3, "max_length": None, "do_sample": False}
    text, _ = model.chat(tokenizer, "a", logits_processor=[Overflow()], **options)
    assert text == tokenizer.core.decode([5, 5, 5]).strip()


def test_the_history_of_another_generation_is_refused(loaded):
    """Pairs are taken for messages, or messages for pairs."""
    pairs, messages = [("a", "b")], [{"role": "user", "content": "a"}]
    for kind, history in (("chatglm3", pairs), ("chatglm2", messages)):
        tokenizer, model = loaded(kind)
        with pytest.raises(RequestError, match="turn 0 of the history"):
            model.chat(tokenizer, "q", history)
    with pytest.raises(RequestError, match="max_length=") as caught:
        model.chat(tokenizer, "q", [], 2048)
    assert "role=2048" in caught.value.message
