"""Chat, generation and blanks of the later models through `LanguageModel`, with real tokenizers.

The networks are random and tiny; what matters is which ids reach them and what becomes of theirs.
"""

from __future__ import annotations

import copy
import json
import shutil

import pytest
import torch

from helpers_data import BPE_MERGES, RANKED, byte_alphabet, write_bpe, write_ranks
from helpers_models import random_model, tiny_config
from openglm.engine.conventions import convention
from openglm.engine.prompt import blank_prompt, continuation_prompt
from openglm.errors import RequestError, TokenizerError
from openglm.language_model import LanguageModel
from openglm.tokenizers import find_tokenizer, open_tokenizer, require_tokenizer

CAUSAL = {"position": "rotary", "activation": "swiglu", "norm": "rmsnorm"}
PREFIX = {"context": "until_sop", "residual": "deepnorm", "hidden_size": 48}
MODELS = {
    "chatglm": ("chatglm6b_ice_text.model", 130528, {"position": "rotary_2d", **PREFIX}),
    "chatglm-icetk": (
        "ice_text_v0_icetk.model",
        150528,
        {"position": "rotary_2d", **PREFIX},
    ),
    "icetk": ("ice_text_v0_icetk.model", 150528, {"position": "rotary", **PREFIX}),
    "chatglm2": ("chatglm2_chatglm3_tokenizer.model", 65024, CAUSAL),
    "chatglm3": ("chatglm2_chatglm3_tokenizer.model", 65024, CAUSAL),
    "codegeex2": ("codegeex2_tokenizer.model", 65024, CAUSAL),
}
CHAT = ["chatglm", "chatglm-icetk", "chatglm2", "chatglm3"]


@pytest.fixture
def load(official_tokenizers):
    def open_model(kind, length=64):
        file, vocab_size, axes = MODELS[kind]
        config = tiny_config(vocab_size=vocab_size, max_position_embeddings=length, **axes)
        tokenizer = open_tokenizer(kind, official_tokenizers / file)
        return LanguageModel(random_model(config), tokenizer, kind)

    return open_model


def script(model, ids):
    """Makes the network write these ids, whatever it is fed; returns what it is fed."""
    fed: list[list[int]] = []
    answers = iter(ids)
    original = model.network.run

    def run(input_ids, *rest, **more):
        fed.append(input_ids[0].tolist())
        return original(input_ids, *rest, **more)

    def logits(hidden):
        row = torch.zeros(*hidden.shape[:-1], model.config.vocab_size)
        row[..., next(answers)] = 100.0
        return row

    model.network.run, model.network.logits = run, logits
    return fed


@pytest.mark.parametrize("kind", CHAT)
def test_chat_asks_and_reads_the_answer(kind, load):
    """The prompt is not what the template says, or the answer is not what the model wrote."""
    model = load(kind)
    special = model.tokenizer.special
    answer = model.tokenizer.encode("你好")
    end = special.eop_id if kind.startswith("chatglm") and kind[-1] not in "23" else special.eos_id
    fed = script(model, [*answer, end])
    messages = [{"role": "user", "content": "再说一遍？"}]
    before = copy.deepcopy(messages)
    reply = model.chat(messages)
    assert (reply.content, reply.token_ids, reply.finish_reason) == ("你好", answer, "stop")
    assert messages == before, "the caller's list was changed"
    assert [m.role for m in reply.messages] == ["assistant"]
    from openglm.chat import as_messages, prompt_ids

    asked = prompt_ids(model.tokenizer, as_messages(messages))
    assert [token for call in fed for token in call][: len(asked)] == asked


def test_chatglm3_stops_before_it_speaks_for_the_user(load):
    """The model goes on writing both sides of the conversation."""
    model = load("chatglm3")
    answer = model.tokenizer.encode("hi")
    script(model, [*answer, model.tokenizer.special.get("user").id])
    assert model.chat("hello").content == "hi"


def test_chatglm3_may_think_before_it_calls_a_tool(load):
    """A second assistant turn inside the answer is lost, or cannot be written at all."""
    model = load("chatglm3")
    encode = model.tokenizer.encode
    thought, call = encode("\n think"), encode("t\n```python\ntool_call(x=1)\n```")
    turn = model.tokenizer.special.get("assistant").id
    script(model, [*thought, turn, *call, model.tokenizer.special.get("observation").id])
    system = {"role": "system", "content": "tools:", "tools": [{"name": "t"}]}
    reply = model.chat([system, {"role": "user", "content": "q"}], max_tokens=60 - 40)
    assert (reply.tool, reply.arguments) == ("t", {"x": 1})
    assert [m.metadata for m in reply.messages] == ["", "t"]


@pytest.mark.parametrize(
    ("stop", "content", "shown"),
    [
        ("<|assistant|>t", "ab", "ab"),
        ("b<|assistant", "a", "a"),
        ("bt", "u", "abt\nu"),  # a turn is between them; its first line names a tool
        ("u", "", "abt\n"),
    ],
)
def test_a_streamed_answer_stops_where_the_other_does(stop, content, shown, tmp_path):
    """A stop string counts in a stream where it does not count else, or the reverse."""
    tokenizer = open_tokenizer("glm4", write_ranks(tmp_path, RANKED))
    turn, end = (tokenizer.special.get(role).id for role in ("assistant", "user"))
    ids = [*tokenizer.encode("ab"), turn, *tokenizer.encode("t\nu"), end]
    config = tiny_config(vocab_size=384, max_position_embeddings=64, **CAUSAL)
    model = LanguageModel(random_model(config), tokenizer, "glm4")
    script(model, ids)
    reply = model.chat("?", stop=stop, max_tokens=9)
    script(model, ids)
    pieces = "".join(model.stream_chat("?", stop=stop, max_tokens=9))
    assert (reply.content, pieces) == (content, shown)


@pytest.mark.parametrize("kind", CHAT)
def test_a_conversation_in_an_engine(kind, load):
    """It answers otherwise than without, or reads again what it has read."""
    model = load(kind, length=512)
    options = {"max_tokens": 8, "seed": 3}
    engine = model.engine(memory_bytes=1 << 22)
    messages = [{"role": "user", "content": "床前明月光，疑是地上霜。" * 3}]
    for question in ("and then?", "why?"):
        alone = "".join(model.stream_chat(messages, **options))
        assert "".join(model.stream_chat(messages, engine=engine, **options)) == alone
        messages += [{"role": "assistant", "content": alone}, {"role": "user", "content": question}]
    assert (engine.statistics.num_prefix_hits >= 32) == (kind in ("chatglm2", "chatglm3"))


def test_who_stops_listening_ends_the_answer(load):
    """Ctrl-C leaves an answer that is written on behind the next question."""
    model = load("chatglm3")
    engine = model.engine(memory_bytes=1 << 22)
    pieces = model.stream_chat("a", engine=engine, max_tokens=20, min_tokens=20, temperature=0)
    next(pieces)
    pieces.close()
    engine.step()
    assert not engine.has_work
    with pytest.raises(RequestError, match="n=2"):
        model.stream_chat("a", engine=engine, n=2)
    assert model.stream_chat("a", engine=engine, num_beams=2, max_tokens=2) is not None


def test_codegeex_indents(tmp_path):
    """Tokens for runs of spaces are never chosen, and no program has an indented line."""
    tokens = [*byte_alphabet(), *("".join(pair) for pair in BPE_MERGES), "<|endoftext|>"]
    tokenizer = open_tokenizer("codegeex", write_bpe(tmp_path, tokens))
    config = tiny_config(vocab_size=448, position="learned", top_query=True)
    model = LanguageModel(random_model(config), tokenizer, "codegeex")
    with pytest.raises(RequestError, match="official code has no beam search"):
        model.generate("a", num_beams=2, max_tokens=4)
    answer = tokenizer.encode("\n    x")
    assert tokenizer.run_ids[4] in answer
    script(model, [*answer, tokenizer.special.eos_id])
    assert model.generate("if a:", max_tokens=10).text == "\n    x"


@pytest.mark.parametrize("kind", MODELS)
def test_streams_equal_the_whole(kind, load):
    """Streamed text differs from the text given at once."""
    model = load(kind)
    options = {"max_tokens": 8, "seed": 3}
    assert (
        "".join(model.stream("床前明月光", **options))
        == model.generate("床前明月光", **options).text
    )


def test_chatglm6b_fills_one_blank_after_the_other(load):
    """Only the first blank is filled, or the second does not see it."""
    model = load("chatglm")
    encode, special = model.tokenizer.encode, model.tokenizer.special
    first, second = encode("一")[-1:], encode("二")[-1:]
    fed = script(model, [*first, special.eop_id, *second, special.eop_id])
    filled = model.fill("甲[MASK]乙[MASK]丙")
    assert [blank.text for blank in filled.blanks] == ["一", "二"]
    assert filled.text == "甲一乙二丙"
    contexts = [call for call in fed if len(call) > 1]
    assert special.mask_id in contexts[0]
    assert contexts[1].count(special.mask_id) == 1
    assert first[0] in contexts[1]


def test_glm130b_ends_a_blank_at_the_end_of_the_text_too(load):
    """A document that ends goes on with nonsense."""
    model = load("icetk")
    special = model.tokenizer.special
    word = model.tokenizer.encode("好")[-1:]
    script(model, [*word, special.eos_id])
    assert model.generate("你", max_tokens=5).finish_reason == "stop"


def test_two_blanks_near_the_end_of_the_positions(load):
    """The second pass, longer than the first, fails in the middle of the answer."""
    model = load("chatglm")
    text = "长" * 50 + "[MASK]短[MASK]"
    length = len(model.tokenizer.encode_with(text, {"[MASK]"}))
    room = (64 - length - 2 + 2) // 2
    filled = model.fill(text, max_tokens=room, min_tokens=room)
    assert [len(blank.token_ids) for blank in filled.blanks] == [room, room]
    with pytest.raises(RequestError, match=f"must be at most {room} here"):
        model.fill(text, max_tokens=room + 1)


def test_the_tokenizer_of_another_revision_is_refused(official_tokenizers):
    """First weights with the later tokenizer: every id is off by 20,000, and nobody says so."""
    config = tiny_config(vocab_size=150528, position="rotary_2d", **PREFIX)
    tokenizer = open_tokenizer("chatglm", official_tokenizers / "chatglm6b_ice_text.model")
    ids = {"mask": 150000, "gmask": 150001, "sop": 150004}
    with pytest.raises(TokenizerError, match="130000 for mask, old has 150000"):
        LanguageModel(random_model(config), tokenizer, "old", ids)


@pytest.mark.parametrize("kind", MODELS)
def test_beams_are_at_least_as_likely_as_the_greedy_answer(kind, load):
    """Beams of a later model are fed at wrong positions, or not there."""
    model = load(kind)
    options = {"max_tokens": 5, "min_tokens": 5}
    greedy = model.generate("one two", temperature=0, top_p=1.0, **options)
    beams = model.generate("one two", num_beams=8, **options)
    assert len(beams.token_ids) == 5
    assert beams.log_probability >= greedy.log_probability - 1e-6
    assert model.generate("one two", num_beams=8, **options).token_ids == beams.token_ids


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_those_of_full_passes(kind, load):
    """Answers are scored at wrong positions, or with an end token that does not count."""
    model = load(kind)
    special, tokenizer = model.tokenizer.special, model.tokenizer
    is_causal = convention(tokenizer).style == "causal"
    context = "one two" if is_causal else "one [gMASK]"
    prompt = (continuation_prompt if is_causal else blank_prompt)(tokenizer, context)
    head = [*prompt.context_ids, prompt.first_id]
    for found in model.score(context, ["three", "one two"]):
        answer = tokenizer.encode(found.choice)
        logits = model.logits(torch.tensor([[*head, *answer]]))[0]
        log_p = torch.log_softmax(logits, dim=-1)[len(head) - 1 : -1]
        expected = log_p.gather(-1, torch.tensor(answer)[:, None]).sum()
        assert found.score == pytest.approx(float(expected), abs=1e-4)
        assert len(found.log_probabilities) == len(answer)
    if not is_causal and special.has("gmask"):
        left_to_right = model.score("one two", ["three"], unidirectional=True)[0]
        head = [special.gmask_id, special.sop_id, *tokenizer.encode("one two")]
        answer = tokenizer.encode("three")
        logits = model.logits(torch.tensor([[*head, *answer]]))[0]
        log_p = torch.log_softmax(logits, dim=-1)[len(head) - 1 : -1]
        expected = log_p.gather(-1, torch.tensor(answer)[:, None]).sum()
        assert left_to_right.score == pytest.approx(float(expected), abs=1e-4)


def test_models_refuse_what_they_were_not_trained_for(load):
    """A causal model is asked to fill blanks, or a code model to chat, and writes nonsense."""
    with pytest.raises(RequestError, match="no blanks to fill"):
        load("chatglm2").fill("a [MASK]")
    with pytest.raises(RequestError, match="not trained to chat"):
        load("codegeex2").chat("hello")
    with pytest.raises(RequestError, match="not trained to chat"):
        load("icetk").chat("hello")
    with pytest.raises(RequestError, match="does not know tools"):
        load("chatglm2").chat(
            [{"role": "system", "content": "", "tools": []}, {"role": "user", "content": "q"}]
        )


def test_a_long_conversation_is_refused(load):
    """A prompt beyond the positions of the model ends in an IndexError."""
    with pytest.raises(RequestError, match="leaves no room: this model has 64 positions"):
        load("chatglm2").chat("长" * 100)


def test_chatglm3_with_its_vocabulary_elsewhere(official_tokenizers, tmp_path):
    """ChatGLM3 is asked as ChatGLM2, which has the same vocabulary file, if that lies elsewhere."""
    words = official_tokenizers / "chatglm2_chatglm3_tokenizer.model"
    shutil.copy(words, tmp_path / "tokenizer.model")
    (tmp_path / "model").mkdir()
    description = {"model_type": "chatglm", "classifier_dropout": None}
    (tmp_path / "model" / "config.json").write_text(json.dumps(description))
    assert find_tokenizer(tmp_path).kind == "chatglm2"
    assert require_tokenizer(tmp_path, tmp_path / "model").kind == "chatglm3"
