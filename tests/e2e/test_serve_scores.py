"""Prompts that are scored, as evaluation programs ask for it, and prompts of token ids."""

from __future__ import annotations

import math

import openai
import pytest
import torch

import openglm
from helpers_gguf import small_tokenizer
from helpers_models import NETWORKS, random_model, tiny_config
from helpers_serve import serving
from openglm.language_model import LanguageModel

TEXTS = ["白日依山尽，黄河入海流。🙂", "The people of philosophy", "two  spaces\n\nand lines"]
TOLERANCE = 2e-5
"""Float32 sums in another order: pages there, one dense pass here."""


def causal(folder, kind):
    """A network with random weights that reads from left to right."""
    folder.mkdir()
    tokenizer = small_tokenizer(kind, folder)
    sizes = {"vocab_size": tokenizer.vocab_size, "max_position_embeddings": 256}
    network = random_model(tiny_config(**NETWORKS["chatglm2"] | sizes))
    return LanguageModel(network, tokenizer, kind)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    kinds = ("glm4", "chatglm3", "codegeex2")
    return {kind: causal(folder / kind, kind) for kind in kinds} | {"mini": openglm.load()}


@pytest.fixture(scope="module")
def client(models):
    memory = {"memory_bytes": 1 << 26}
    with (
        serving(models, engine=memory) as (address, key),
        # OpenAI's own answers have null for the first token, which its strict types do not allow.
        openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as found,
    ):
        yield found


def ask(client, model, prompt, **more):
    settings = {"temperature": 0, "max_tokens": 0, "echo": True, "logprobs": 3}
    return client.completions.create(model=model, prompt=prompt, **settings | more)


def by_one_pass(model, ids):
    """(T, V) log-probabilities of what follows each id of a text; of nothing in front of it."""
    special = model.tokenizer.special
    before = [special.gmask_id, special.sop_id]
    logits = model.logits(torch.tensor([[*before, *ids]]))[0, len(before) :]
    return torch.log_softmax(logits, dim=-1)


def check(model, ids, scored, count):
    """Log-probabilities of a text's first `count` tokens are those of one pass over all `ids`."""
    log_p = by_one_pass(model, ids)
    assert scored.token_logprobs[0] is scored.top_logprobs[0] is None
    expected = [log_p[i, ids[i + 1]].item() for i in range(count - 1)]
    assert scored.token_logprobs[1:count] == pytest.approx(expected, abs=TOLERANCE)
    for found, row in zip(scored.top_logprobs[1:count], log_p, strict=False):
        best = row.topk(3).values.tolist()
        assert max(found.values()) == pytest.approx(best[0], abs=TOLERANCE)
        assert min(found.values()) >= best[-1] - TOLERANCE


@pytest.mark.parametrize("kind", ["glm4", "chatglm3", "codegeex2"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_is_scored(client, models, kind, text):
    """An evaluation gets other numbers than the model's, or of other tokens."""
    model = models[kind]
    ids = model.tokenizer.encode(text)
    for prompt in (text, ids):
        done = ask(client, kind, prompt)
        (choice,) = done.choices
        assert (choice.text, choice.finish_reason) == (text, "length")
        check(model, ids, choice.logprobs, len(ids))
        assert len(choice.logprobs.tokens) == len(ids)
        assert done.usage.completion_tokens == 0
        assert done.usage.prompt_tokens == len(ids) + 2  # [gMASK] sop


@pytest.mark.parametrize("kind", ["glm4", "chatglm3"])
@pytest.mark.parametrize("streams", [False, True])
def test_a_prompt_is_scored_and_continued(client, models, kind, streams):
    """Scores of prompt and answer are mixed up, or prompts with each other."""
    model = models[kind]
    settings = {"max_tokens": 4, "temperature": 1, "n": 2, "seed": 3, "stream": streams}
    done = ask(client, kind, TEXTS, **settings)
    written = [{"text": "", "tokens": [], "values": [], "offsets": []} for _ in range(6)]
    for choice in [c for chunk in done for c in chunk.choices] if streams else done.choices:
        one = written[choice.index]
        one["text"] += choice.text
        if choice.logprobs is not None:
            one["tokens"] += choice.logprobs.tokens
            one["values"] += choice.logprobs.token_logprobs
            one["offsets"] += choice.logprobs.text_offset
    for index, one in enumerate(written):
        text = TEXTS[index // 2]
        ids = model.tokenizer.encode(text)
        asked = {"max_tokens": 4, "temperature": 1, "seed": 3 + index % 2, "logprobs": 0}
        answer = model.generate(text, **asked)
        assert one["text"] == text + answer.text
        log_p = by_one_pass(model, [*ids, *answer.token_ids])
        every = [*ids, *answer.token_ids]
        expected = [log_p[i, every[i + 1]].item() for i in range(len(every) - 1)]
        assert one["values"][0] is None
        assert one["values"][1:] == pytest.approx(expected, abs=TOLERANCE)
        assert one["offsets"] == sorted(one["offsets"])
        assert one["offsets"][len(ids)] == len(text)


def test_offsets_are_places_in_the_text(client, models):
    """A program that cuts the text at an offset cuts another token, or half a character."""
    for kind in ("glm4", "chatglm3", "mini"):
        for text in TEXTS:
            scored = ask(client, kind, text).choices[0].logprobs
            ids = models[kind].tokenizer.encode(text)
            for number, offset in enumerate(scored.text_offset):
                front = models[kind].tokenizer.decode(ids[:number]).rstrip("\ufffd")
                if kind != "mini":  # it turns every run of white space into one space
                    assert text[:offset].strip() == front.strip()
            assert scored.text_offset[0] == 0


def test_prompts_of_every_length(client, models):
    """The shortest and the longest text that a model reads cannot be scored."""
    model = models["glm4"]
    (choice,) = ask(client, "glm4", [7]).choices
    assert choice.logprobs.token_logprobs == [None]
    ids = [5 + i % 90 for i in range(255)]  # of 256 positions two are taken; the last is not fed
    check(model, ids[:-1], ask(client, "glm4", ids).choices[0].logprobs, 254)
    with pytest.raises(openai.BadRequestError, match="256"):
        ask(client, "glm4", [*ids, 5])


def test_a_model_that_reads_a_prompt_whole(client, models):
    """GLM's scores are of words that it saw, or not those of `score`."""
    text = "The river runs to the sea."
    (expected,) = models["mini"].score("", [text], unidirectional=True)
    scored = ask(client, "mini", text).choices[0].logprobs
    assert scored.token_logprobs[1:] == pytest.approx(expected.log_probabilities[1:], abs=TOLERANCE)
    alone = ask(client, "mini", text, echo=False, max_tokens=5).choices[0]
    both = ask(client, "mini", text, max_tokens=5).choices[0]
    assert both.text == text + alone.text
    assert both.logprobs.token_logprobs[-5:] == alone.logprobs.token_logprobs


def test_as_an_evaluation_harness_does(client, models):
    """lm-evaluation-harness' arithmetic on an answer is not the score of a continuation."""
    model = models["glm4"]
    contexts, choices = ["The people", "白日依山尽"], [" of philosophy", "，黄河入海流"]
    pairs = [
        (model.tokenizer.encode(context), model.tokenizer.encode(choice))
        for context, choice in zip(contexts, choices, strict=True)
    ]
    prompts = [[*context, *choice] for context, choice in pairs]
    done = ask(client, "glm4", prompts, max_tokens=1, logprobs=1, seed=1234)
    for (context, choice), answer in zip(pairs, done.choices, strict=True):
        values = answer.logprobs.token_logprobs[len(context) : -1]
        tops = answer.logprobs.top_logprobs[len(context) : -1]
        log_p = by_one_pass(model, [*context, *choice])[len(context) - 1 : -1]
        expected = log_p.gather(1, torch.tensor(choice)[:, None]).sum().item()
        assert math.fsum(values) == pytest.approx(expected, abs=TOLERANCE * len(choice))
        is_greedy = all(v == max(top.values()) for v, top in zip(values, tops, strict=True))
        assert is_greedy == (log_p.argmax(dim=-1).tolist() == choice)


def test_the_end_of_a_text_is_scored_with_its_prompt(client, models):
    """A harness cuts the last of the tokens off, which is then one of the prompt."""
    model = models["glm4"]
    ids, end = model.tokenizer.encode(TEXTS[0]), model.tokenizer.special.eos_id
    asked = {"max_tokens": 1, "logit_bias": {str(end): 100}}
    choice = ask(client, "glm4", ids, **asked).choices[0]
    assert (choice.text, choice.finish_reason) == (TEXTS[0], "stop")
    check(model, [*ids, end], choice.logprobs, len(ids) + 1)
    assert choice.logprobs.tokens[-1] == model.tokenizer.special.get("eos").text
    chunks = [c.choices[0] for c in ask(client, "glm4", ids, **asked, stream=True)]
    found = [v for c in chunks if c.logprobs is not None for v in c.logprobs.token_logprobs]
    assert found == choice.logprobs.token_logprobs


def test_ids_are_the_text(client, models):
    """Token ids are another prompt than the text that they spell."""
    for kind, model in models.items():
        ids = model.tokenizer.encode(TEXTS[1])
        alone = {"echo": False, "logprobs": None, "max_tokens": 6}
        expected = ask(client, kind, TEXTS[1], **alone)
        found = ask(client, kind, [ids, ids], **alone)
        assert [choice.text for choice in found.choices] == [expected.choices[0].text] * 2
        assert found.usage.prompt_tokens == 2 * expected.usage.prompt_tokens
    special = models["glm4"].tokenizer.special
    ids = [special.gmask_id, special.sop_id, *models["glm4"].tokenizer.encode(TEXTS[1])]
    with_commands = ask(client, "glm4", ids, **alone)  # as the model's own tokenizer writes them
    assert with_commands.usage.prompt_tokens == len(ids)
    assert with_commands.choices[0].text == ask(client, "glm4", TEXTS[1], **alone).choices[0].text


@pytest.mark.parametrize(
    ("model", "more", "named"),
    [
        ("glm4", {"prompt": [5, 10**6]}, "1000000 is no token id"),
        ("glm4", {"prompt": [[5], [-1]]}, "prompt"),
        ("glm4", {"prompt": [10**40]}, "no token id"),
        ("glm4", {"prompt": []}, "prompt"),
        ("glm4", {"prompt": [[]]}, "prompt"),
        ("glm4", {"prompt": [[5], "x"]}, "prompt"),
        ("glm4", {"prompt": [True]}, "prompt"),
        ("glm4", {"prompt": [5.5]}, "prompt"),
        ("glm4", {"echo": False}, "max_tokens=0"),
        ("mini", {"suffix": "x"}, "suffix"),
        ("mini", {"suffix": "x", "max_tokens": 3}, "suffix"),
        ("mini", {"suffix": "x", "max_tokens": 3, "logprobs": None, "prompt": [5]}, "token ids"),
        ("glm4", {"logprobs": 6}, "logprobs"),
    ],
    ids=str,
)
def test_what_cannot_be_scored(client, model, more, named):
    """A prompt that is none is answered all the same, or ends the server."""
    with pytest.raises(openai.BadRequestError, match=named):
        ask(client, model, **{"prompt": "x y z"} | more)


def test_a_blank_is_no_token_of_a_prompt(client, models):
    """GLM is asked to continue a text, and fills a blank in it."""
    mask = models["mini"].tokenizer.special.get("mask").id
    with pytest.raises(openai.BadRequestError, match="blank"):
        ask(client, "mini", [5, mask, 6], max_tokens=3, logprobs=None)


def test_an_echo_alone(client):
    """Nothing is to be written and nothing to be scored, and all the same something is."""
    done = ask(client, "glm4", ["a b", "c"], logprobs=None, n=2)
    assert [choice.text for choice in done.choices] == ["a b", "a b", "c", "c"]
    assert all(choice.logprobs is None for choice in done.choices)
    assert done.usage.completion_tokens == 0
