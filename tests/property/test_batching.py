"""What a request writes in the engine is what it writes alone, for every family and any company."""

from __future__ import annotations

import dataclasses
import random

import pytest

from helpers_engine import (
    CAUSAL,
    FAMILIES,
    GROW,
    REFEED,
    alone,
    assert_same_steps,
    finish,
    load,
    make_engine,
    random_asked,
    random_params,
    random_prompt,
    run_together,
)
from helpers_models import random_model
from openglm.engine.paged_cache import pages_for
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.engine.writer import Asked, most_tokens
from openglm.errors import RequestError

LONG = "chatglm/chatglm3_32k_tiny"
"""128 positions: prompts of several pages."""
QUANTIZED = (f"{LONG}@int4-g32", f"{LONG}@int8", "glm/hf@int8-g32", "chatglm/chatglm6b_tiny@int4")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", [*FAMILIES, *QUANTIZED])
def test_random_neighbours_change_nothing(name, seed):
    """A request gets the tokens, positions or keys of another, or loses some of its own."""
    rng = random.Random(seed)
    every = [random_asked(name, rng) for _ in range(7)]
    budget = rng.choice([1, 3, 17, 512])
    engine = make_engine(name, pages=rng.choice([6, 9, 40]), max_batch_tokens=budget)
    found = run_together(engine, every, rng)
    for request, asked in zip(found, every, strict=True):
        assert_same_steps(request.steps, alone(name, asked))


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_that_lose_their_memory(name):
    """A preempted request repeats or forgets tokens, or draws others than it would have."""
    rng = random.Random(7)
    every = []
    for _ in range(5):
        prompt = random_prompt(name, rng, length=20)
        params = random_params(name, prompt, rng)
        every.append((prompt, dataclasses.replace(params, min_tokens=params.max_tokens)))  # long
    longest = max(most_tokens(*asked) for asked in every)
    engine = make_engine(name, pages=pages_for(longest))
    requests = []
    for priority, asked in enumerate(every):  # each throws out all before it
        requests.append(engine.add(*asked, priority=priority))
        for _ in range(3):
            engine.step()
    finish(engine)
    for request, asked in zip(requests, every, strict=True):
        assert_same_steps(request.steps, alone(name, asked))
    assert engine.statistics.num_preemptions > 0


@pytest.mark.parametrize("budget", [1, 3, 7, 31, 33, 50])
def test_prompts_in_pieces(budget):
    """A prompt that is read over several steps is read wrongly at a border."""
    rng = random.Random(budget)
    every = [(random_prompt(LONG, rng, length=n), SamplingParams(max_tokens=5)) for n in (100, 71)]
    engine = make_engine(LONG, max_batch_tokens=budget)
    for request, asked in zip(run_together(engine, every, rng), every, strict=True):
        assert_same_steps(request.steps, alone(LONG, asked))
    assert engine.statistics.num_steps >= 171 / budget


@pytest.mark.parametrize("name", CAUSAL[:4])
def test_a_shared_beginning_is_read_once(name):
    """A prompt that begins like an earlier one gets other keys than its own, or reads all again."""
    rng = random.Random(3)
    ids = [rng.randrange(3, 90) for _ in range(45)]
    tails = [[], [7], [8, 9], [7, 4, 4]]
    every = [
        (causal_prompt([*ids, *tail], frozenset({2})), SamplingParams(max_tokens=9))
        for tail in tails
    ]
    engine = make_engine(name)
    for number, asked in enumerate(every):
        request = engine.add(*asked)
        finish(engine)
        assert_same_steps(request.steps, alone(name, asked))
        assert engine.statistics.num_prefix_hits == 32 * number


def test_answers_are_shared_too():
    """The next turn of a conversation reads the answer again that the model has just written."""
    engine = make_engine(LONG)
    asked = (causal_prompt(list(range(3, 43)), frozenset({2})), SamplingParams(max_tokens=30))
    first = engine.add(*asked)
    finish(engine)
    turn = [*range(3, 43), *first.blank(), 5, 6]
    asked = (causal_prompt(turn, frozenset({2})), SamplingParams(max_tokens=9))
    second = engine.add(*asked)
    finish(engine)
    assert engine.statistics.num_prefix_hits == 64
    assert_same_steps(second.steps, alone(LONG, asked))


def test_tenants_share_nothing():
    """How long an answer takes tells one customer what another has asked."""
    engine = make_engine(LONG)
    prompt = causal_prompt(list(range(3, 80)), frozenset({2}))
    for tenant in ("a", "b", ""):
        engine.add(prompt, SamplingParams(max_tokens=1), tenant=tenant)
        finish(engine)
    assert engine.statistics.num_prefix_hits == 0
    engine.add(prompt, SamplingParams(max_tokens=1), tenant="b")
    finish(engine)
    assert engine.statistics.num_prefix_hits == 64


@pytest.mark.parametrize("name", [*REFEED, *GROW])
def test_contexts_that_see_themselves_whole_are_never_shared_or_cut(name):
    """Keys that depend on what comes later are taken for those of an equal beginning."""
    rng = random.Random(5)
    asked = (random_prompt(name, rng, length=40), SamplingParams(max_tokens=6))
    engine = make_engine(name, max_batch_tokens=3)
    requests = [engine.add(*asked) for _ in range(3)]
    finish(engine)
    for request in requests:
        assert_same_steps(request.steps, alone(name, asked))
    assert engine.statistics.num_prefix_hits == 0


@pytest.mark.parametrize("kind", ["prefix_plain", "prefix_proj"])
@pytest.mark.parametrize("name", ["chatglm/chatglm2_tiny", "chatglm/chatglm6b_tiny"])
@pytest.mark.parametrize("pages", [4, 40])
def test_trained_prefixes(name, kind, pages):
    """Tokens see less of a P-Tuning prefix than alone, or count it among their positions."""
    rng = random.Random(1)
    every = [random_asked(name, rng) for _ in range(6)]
    every += every[:2]  # found again where pages are shared
    engine = make_engine(name, pages=pages, prefix=kind, max_batch_tokens=19)
    for request, asked in zip(run_together(engine, every, rng), every, strict=True):
        expected = alone(name, asked, kind)
        assert_same_steps(request.steps, expected)
        assert expected != alone(name, asked)  # the prefix matters


# ------------------------------------------------------------------ guessing ahead


@pytest.mark.parametrize("name", FAMILIES)
def test_guesses_change_nothing(name):
    """A guessed token is kept although the model would have chosen another."""
    rng = random.Random(11)
    every = [random_asked(name, rng) for _ in range(8)]
    engine = make_engine(name, pages=12, max_drafts=5)
    for request, asked in zip(run_together(engine, every, rng), every, strict=True):
        assert_same_steps(request.steps, alone(name, asked))


@pytest.mark.parametrize("temperature", [0.0, 0.1])
def test_right_guesses_save_steps(temperature):
    """Text that repeats itself is guessed never, or the guesses are fed at wrong positions."""
    params = SamplingParams(max_tokens=60, temperature=temperature, seed=1)
    asked = (causal_prompt([5, 6, 7, 5, 6, 7, 5], frozenset({2})), params)
    plain, guessing = (make_engine(LONG, max_drafts=most) for most in (0, 8))
    for engine in (plain, guessing):
        request = engine.add(*asked)
        finish(engine)
        assert_same_steps(request.steps, alone(LONG, asked))
    numbers = guessing.statistics
    assert 0 < numbers.num_accepted <= numbers.num_drafted
    assert numbers.num_steps == plain.statistics.num_steps - numbers.num_accepted


@pytest.mark.parametrize("temperature", [0.0, 1.2])
@pytest.mark.parametrize("own", [True, False], ids=["itself", "another"])
def test_a_draft_model_changes_nothing(own, temperature):
    """A draft model that is right saves no step, or one that is wrong changes the text."""
    draft = load(LONG).network if own else random_model(load(LONG).config, seed=3)
    rng = random.Random(4)
    engines = [make_engine(LONG, max_drafts=4, draft_model=draft), make_engine(LONG)]
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=9)
    every = [Asked(random_prompt(LONG, rng, length=n), params) for n in (1, 40, 33)]
    for engine in engines:
        for request, asked in zip(run_together(engine, every, rng), every, strict=True):
            assert_same_steps(request.steps, alone(LONG, asked))
    assert engines[0].statistics.num_drafted > 0
    if own and not temperature:
        numbers = engines[0].statistics
        assert numbers.num_accepted > 0.8 * numbers.num_drafted  # less behind an end
        assert numbers.num_steps < 0.5 * engines[1].statistics.num_steps


def test_draft_models_that_cannot_guess():
    """A draft model of another vocabulary ends in an index error, a GLM in nonsense."""
    network = load(LONG).network
    larger = dataclasses.replace(network.config, vocab_size=network.config.vocab_size + 16)
    stranger = random_model(larger)
    with pytest.raises(RequestError, match="tokens"):
        make_engine(LONG, max_drafts=4, draft_model=stranger)
    with pytest.raises(RequestError, match="max_drafts"):
        make_engine(LONG, draft_model=network)
    with pytest.raises(RequestError, match="causal"):
        make_engine(GROW[0], max_drafts=4, draft_model=load(GROW[0]).network)


def test_guesses_cross_the_end_of_a_blank_nowhere():
    """A guess is fed behind the last token that a blank may have, at a position of its own."""
    name = GROW[0]
    rng = random.Random(2)
    prompt = random_prompt(name, rng, length=20)
    fed = []
    engine = make_engine(name, max_drafts=8)
    run = engine.model.run
    request = engine.add(prompt, SamplingParams(max_tokens=12))

    def watch(ids, positions, blocks, context):
        fed.append(int(blocks.max()))
        return run(ids, positions, blocks, context)

    engine.model.run = watch
    try:
        finish(engine)
    finally:
        del engine.model.run
    assert max(fed) <= 12 + 1
    assert_same_steps(request.steps, alone(name, (prompt, SamplingParams(max_tokens=12))))


# ------------------------------------------------------------------ smaller keys and values


@pytest.mark.parametrize("name", [CAUSAL[0], REFEED[0], GROW[0]])
def test_int8_keys_and_values_are_near(name):
    """Scales of int8 keys are those of other tokens or heads."""
    rng = random.Random(4)
    prompt = random_prompt(name, rng, length=25)
    asked = (prompt, SamplingParams(max_tokens=3))
    engine = make_engine(name, kv_dtype="int8")
    request = engine.add(*asked)
    finish(engine)
    # 1/127 of the largest element, rounded: log p of the same tokens moves in the third digit.
    found, expected = (
        [s.log_probability for s in steps[:1]] for steps in (request.steps, alone(name, asked))
    )
    assert found == pytest.approx(expected, abs=0.05)
    assert engine.pool.num_pages > 2 * make_engine(name).pool.num_pages
