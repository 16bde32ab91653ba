"""Who goes first, who waits, and how requests end, in the engine."""

from __future__ import annotations

import random

import pytest

from helpers_engine import (
    CAUSAL,
    GROW,
    REFEED,
    alone,
    assert_same_steps,
    finish,
    load,
    make_engine,
    random_prompt,
)
from openglm.engine.engine import Engine
from openglm.engine.paged_cache import KV_DTYPES
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.engine.request import HEAD_START
from openglm.errors import RequestError
from openglm.kernels.cpu import module
from openglm.language_model import LanguageModel
from openglm.process import resident_bytes
from openglm.results import Completion
from openglm.train.allocator import keep_freed_memory

NAME = "chatglm/chatglm3_32k_tiny"
LONG = SamplingParams(max_tokens=50)


def prompt_of(length, first=3):
    """Left to right, with an end that never comes."""
    return causal_prompt([first + i % 80 for i in range(length)], frozenset({2}))


def writers(events):
    return [event.request_id for event in events]


# ------------------------------------------------------------------ who goes first


def test_a_higher_priority_takes_the_memory():
    """An urgent request waits until others are done, or ends them instead of pausing them."""
    engine = make_engine(NAME, pages=4)
    slow = engine.add(prompt_of(40), LONG)
    for _ in range(3):
        engine.step()
    urgent = engine.add(prompt_of(70, first=9), LONG, priority=1)
    assert writers(engine.step()) == [urgent.id]
    assert (slow.is_running, urgent.is_running) == (False, True)
    assert engine.statistics.num_preemptions == 1
    assert (engine.statistics.running, engine.statistics.waiting) == (1, 1)
    finish(engine)
    for request, length, first in ((slow, 40, 3), (urgent, 70, 9)):
        assert_same_steps(request.steps, alone(NAME, (prompt_of(length, first), LONG)))


def test_own_pages_are_no_prefix_hits():
    """An operator reads that prompts are alike, where one request lost its memory and came back."""
    engine = make_engine(NAME, pages=5)
    slow = engine.add(prompt_of(70), LONG)
    engine.step()
    engine.add(prompt_of(70, first=9), SamplingParams(max_tokens=9), priority=1)
    engine.step()
    assert not slow.is_running
    finish(engine)
    assert engine.statistics.num_preemptions == 1
    assert engine.statistics.num_tokens < 120 + 80 + 64, "its two full pages were read again"
    assert engine.statistics.num_prefix_hits == 0


def test_the_last_in_line_loses_its_memory_first():
    """An urgent request stops the one that has waited longest, or more of them than it must."""
    engine = make_engine(NAME, pages=4)
    old, young = (engine.add(prompt_of(20, first=n), SamplingParams(max_tokens=9)) for n in (3, 9))
    engine.step()
    engine.add(prompt_of(60, first=30), LONG, priority=1)
    engine.step()
    assert (old.is_running, young.is_running) == (True, True)  # two pages were free
    engine.add(prompt_of(20, first=50), SamplingParams(max_tokens=9), priority=2)
    engine.step()
    assert (old.is_running, young.is_running) == (True, False)
    finish(engine)


def test_a_request_that_would_soon_be_thrown_out_waits():
    """A newcomer gets the page that its neighbour needs next, and reads its prompt for nothing."""
    engine = make_engine(NAME, pages=3)
    engine.add(prompt_of(40), LONG)
    engine.add(prompt_of(20, first=9), LONG)
    finish(engine)
    assert engine.statistics.num_preemptions == 0


def test_equal_priorities_go_in_the_order_of_arrival():
    """A newcomer takes the memory of one that came before it."""
    engine = make_engine(NAME, pages=4)
    first = engine.add(prompt_of(60), LONG)
    second = engine.add(prompt_of(60, first=9), LONG)
    third = engine.add(prompt_of(3), SamplingParams(max_tokens=1))
    began = []
    while engine.has_work:
        began += writers(engine.step())
        assert not (third.steps and not second.steps)  # nor does a small one slip past
    assert list(dict.fromkeys(began)) == [first.id, second.id, third.id]
    assert engine.statistics.num_preemptions == 0


def test_nobody_waits_for_ever():
    """Urgent requests that keep coming starve one without priority."""
    engine = make_engine(NAME, pages=4)
    plain = engine.add(prompt_of(70), SamplingParams(max_tokens=40))
    num_steps = 0
    while plain.finish_reason is None:
        if len(engine.scheduler.line) < 3:
            engine.add(prompt_of(70, first=9), SamplingParams(max_tokens=40), priority=1)
        engine.step()
        num_steps += 1
        assert num_steps <= HEAD_START + 200
    assert num_steps > HEAD_START  # it did wait


def test_a_step_keeps_to_its_budget():
    """A long prompt stops everybody who writes, or a full batch stops the prompt."""
    engine = make_engine(NAME, max_batch_tokens=40)
    running = [engine.add(prompt_of(4, first=n), LONG) for n in range(3, 13)]
    engine.step()
    reader = engine.add(prompt_of(100), SamplingParams(max_tokens=9))
    for _ in range(4):
        before = engine.statistics.num_tokens
        events = engine.step()
        assert engine.statistics.num_tokens - before <= 40
        assert {request.id for request in running} <= set(writers(events))
    assert reader.steps


def test_a_full_batch_does_not_stop_an_urgent_prompt():
    """Requests that write use up every step's budget, and one before them is never read."""
    engine = make_engine(NAME, max_batch_tokens=8)
    for first in range(3, 11):
        engine.add(prompt_of(1, first=first), LONG)
    engine.step()
    urgent = engine.add(prompt_of(40), SamplingParams(max_tokens=1), priority=1)
    for _ in range(5):
        assert not urgent.steps
        engine.step()
    assert urgent.steps


def test_one_context_at_a_time_may_exceed_the_budget():
    """A context that cannot be cut is never read, or all are read in one step."""
    name = GROW[0]
    rng = random.Random(0)
    engine = make_engine(name, max_batch_tokens=16)
    for _ in range(3):
        engine.add(random_prompt(name, rng, length=30), SamplingParams(max_tokens=9, min_tokens=9))
    fed = []
    for _ in range(3):
        before = engine.statistics.num_tokens
        engine.step()
        fed.append(engine.statistics.num_tokens - before)
    assert fed == [31, 32, 33]


# ------------------------------------------------------------------ how requests end


def test_cancelled_requests_get_no_more_tokens():
    """A client that went away is still written for."""
    engine = make_engine(NAME)
    gone, stays = (engine.add(prompt_of(9), LONG) for _ in range(2))
    engine.step()
    assert engine.cancel(gone.id)
    events = engine.step()
    assert [(e.step.finish_reason, e.is_last) for e in events if e.request_id == gone.id] == [
        ("cancelled", True)
    ]
    assert gone.finish_reason == "cancelled"
    assert not gone.pages
    assert not engine.cancel(gone.id)
    assert not engine.cancel(99)
    finish(engine)
    assert_same_steps(stays.steps, alone(NAME, (prompt_of(9), LONG)))


def test_a_cancellation_during_a_step_works_in_that_step():
    """The token that is just being computed is still delivered."""
    engine = make_engine(NAME)
    request = engine.add(prompt_of(9), LONG)
    forward = engine._forward

    def interrupted(chunks):
        engine.cancel(request.id)
        return forward(chunks)

    engine._forward = interrupted
    (event,) = engine.step()
    assert (event.step.token, event.step.finish_reason) == (None, "cancelled")
    finish(engine)


def test_waiting_requests_can_be_cancelled():
    """A request that has not begun stays in the line although nobody waits for it."""
    engine = make_engine(NAME, pages=4)
    engine.add(prompt_of(60), LONG)
    waiting = engine.add(prompt_of(60, first=9), LONG)
    engine.step()
    engine.cancel(waiting.id)
    assert waiting.id in writers(engine.step())
    assert waiting.steps[-1].finish_reason == "cancelled"
    engine.cancel(engine.add(prompt_of(3), LONG).id)  # not even a step old
    finish(engine)


def test_deadlines():
    """A request goes on beyond the time that its caller waits, or ends before it."""
    now = [100.0]
    engine = make_engine(NAME, clock=lambda: now[0])
    timed = engine.add(prompt_of(9), LONG, deadline=103.0)
    free = engine.add(prompt_of(9), SamplingParams(max_tokens=9))
    while engine.has_work:
        engine.step()
        now[0] += 1
    assert timed.finish_reason == "deadline"
    assert len(timed.blank()) == 3
    assert free.finish_reason == "length"


@pytest.mark.parametrize("error", [RequestError("no number"), KeyError("a rule")], ids=str)
def test_an_error_ends_its_own_request_only(error, monkeypatch):
    """One request with broken numbers takes down all that run beside it."""
    engine = make_engine(NAME)
    broken, sound = (engine.add(prompt_of(9), LONG) for _ in range(2))

    def refuse(logits, blank):
        raise error

    monkeypatch.setattr(broken.writer.sampler, "choose", refuse)
    events = engine.step()
    assert (broken.finish_reason, broken.error) == ("error", error)
    assert writers(events) == [broken.id, sound.id]
    finish(engine)
    assert_same_steps(sound.steps, alone(NAME, (prompt_of(9), LONG)))


# ------------------------------------------------------------------ what is refused


def test_requests_that_never_fit_are_refused_with_the_numbers():
    """A request waits for ever for memory that the engine does not have."""
    engine = make_engine(NAME, pages=2)
    with pytest.raises(RequestError, match=r"78 tokens long, which take 49,152 bytes .* 32,768"):
        engine.add(prompt_of(29), LONG)
    engine.add(prompt_of(15), LONG)  # 14 + 50 fill both pages to the last slot
    finish(engine)
    with pytest.raises(RequestError, match="must be at most 28 here"):
        engine.add(prompt_of(100), LONG)
    with pytest.raises(RequestError, match="no beam search"):
        engine.add(prompt_of(9), SamplingParams(num_beams=2))
    for wrong in ({"priority": "high"}, {"tenant": 3}):
        with pytest.raises(RequestError, match="must be a whole number"):
            engine.add(prompt_of(9), LONG, **wrong)
    for wrong in ("5", float("nan"), True):
        with pytest.raises(RequestError, match="engine's clock"):
            engine.add(prompt_of(9), LONG, deadline=wrong)
    assert not engine.has_work
    engine.add(prompt_of(9), SamplingParams(max_tokens=1), tenant="\udc80")
    finish(engine)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"memory_bytes": 8191}, "holds no page: one of 32 tokens takes 16384 bytes"),
        ({"memory_bytes": 1e9}, "must be a whole number"),
        ({"memory_bytes": 1 << 70}, "more than the system gives"),
        ({"kv_dtype": "int9"}, "unknown kv_dtype 'int9'"),
        ({"max_batch_tokens": 0}, "max_batch_tokens=0 must be at least 1"),
        ({"max_drafts": 65}, "max_drafts=65 must be from 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    """A wrong setting shows up as a crash in the first step."""
    with pytest.raises(RequestError, match=message):
        Engine(load(CAUSAL[1]).network, **settings)


@pytest.mark.skipif(module() is None, reason="no compiled CPU kernels")
@pytest.mark.parametrize("kv_dtype", ["auto", *KV_DTYPES])
def test_a_slow_kv_dtype_says_so(kv_dtype, caplog):
    """Attention leaves the compiled kernels, and nobody knows why the engine is slow."""
    make_engine(NAME, kv_dtype=kv_dtype)
    said = [record.getMessage() for record in caplog.records if "kv_dtype" in record.getMessage()]
    assert len(said) == (kv_dtype == "float16")
    assert all("faster: float32, bfloat16, int8" in one for one in said)


def test_longest_requests_fit_exactly():
    """The memory that a request may need is counted too small, and it stops in the middle."""
    for name, length, most in ((GROW[0], 20, 14), (REFEED[1], 20, 9), (NAME, 20, 45)):
        prompt = random_prompt(name, random.Random(3), length=length)
        params = SamplingParams(max_tokens=most, min_tokens=most)
        sizes = range(1, 9)
        for pages in sizes:
            engine = make_engine(name, pages=pages)
            try:
                request = engine.add(prompt, params)
            except RequestError:
                continue
            finish(engine)
            assert_same_steps(request.steps, alone(name, (prompt, params)))
            break
        assert pages < len(sizes)


# ------------------------------------------------------------------ through the model


@pytest.fixture(scope="module")
def model(mini):
    from helpers_models import random_model, tiny_config

    config = tiny_config(vocab_size=432, max_position_embeddings=64)
    return LanguageModel(random_model(config, seed=3), mini, "random")


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 5}])
def test_generate_batch_is_generate(model, options):
    """Texts that are continued together come back in another order, or with other settings."""
    prompts = ["the cat", "the river flows into the sea", "", "a"]
    found = model.generate_batch(prompts, max_tokens=8, **options)
    for completion, prompt in zip(found, prompts, strict=True):
        expected = model.generate(prompt, max_tokens=8, **options)
        assert isinstance(completion, Completion)
        assert completion.token_ids == expected.token_ids
        assert completion.text == expected.text
        assert completion.finish_reason == expected.finish_reason
        assert completion.log_probability == pytest.approx(
            expected.log_probability, abs=1e-5, nan_ok=True
        )
        if "seed" in options:
            assert completion.seed == 5


def test_generate_batch_of_nothing_and_of_one_text(model):
    """A text is taken for a list of letters."""
    assert model.generate_batch([]) == []
    with pytest.raises(RequestError, match="must be a list of texts"):
        model.generate_batch("the cat")


def test_requests_of_a_model(model):
    """Blanks are asked for in the engine with other settings than alone."""
    text = "the [MASK] sat on [sMASK]"
    engine = model.engine(memory_bytes=1 << 20)
    request = engine.add(*model.request(text, "fill", max_tokens=5))
    finish(engine)
    blanks = model.fill(text, max_tokens=5).blanks
    assert [request.blank(i) for i in range(2)] == [blank.token_ids for blank in blanks]
    with pytest.raises(RequestError, match="unknown task 'fil'") as caught:
        model.request(text, "fil")
    assert "'fill'" in caught.value.hint


def test_pages_take_memory_once_they_are_written_to():
    """An engine for a long conversation takes the memory of the longest at once.

    In a process that has trained too, whose malloc keeps what is freed.
    """
    keep_freed_memory()
    before = resident_bytes()
    engine = make_engine(NAME, pages=1)
    large = Engine(engine.model, memory_bytes=1 << 30)
    assert resident_bytes() - before < 1 << 27
    assert all(layer.keys.data_ptr() % 64 == 0 for layer in large.cache.layers)


def test_more_memory_than_there_is():
    """Said before a request is taken, with the number."""
    model = make_engine(NAME, pages=1).model
    with pytest.raises(RequestError, match=f"memory_bytes={1 << 60} is more than"):
        Engine(model, memory_bytes=1 << 60)
