"""Requests of every family for the engine, and what each writes alone.

The networks are the recorded tiny ones. Prompts are random ids in the layout of their style; some
tokens end a blank, so that blanks stop early, late and at once.
"""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import openglm
from openglm.engine.engine import Engine
from openglm.engine.fill import Filler
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt, causal_prompt
from openglm.engine.request import Request
from openglm.engine.writer import Asked, Step, room
from openglm.kernels.cpu import module
from openglm.language_model import LanguageModel

GOLDENS = Path(__file__).parent / "goldens"
CAUSAL = (
    "chatglm/chatglm2_tiny",
    "chatglm/chatglm3_32k_tiny",
    "chatglm/glm4_9b_hf_tiny",
    "chatglm/glm4_0414_hf_tiny",
    "codegeex",
)
REFEED = ("chatglm/chatglm6b_tiny", "glm130b/sat_tp1")
GROW = ("glm/hf",)
FAMILIES = (*CAUSAL, *REFEED, *GROW)
PAGE = 32
MOST_STEPS = 5000


@cache
def load(name: str, prefix: str | None = None) -> LanguageModel:
    """One recorded network, with a trained prefix of this name beside it; NAME@DTYPE quantizes."""
    name, _, dtype = name.partition("@")
    meta = GOLDENS / name.split("/")[0] / "meta.json"
    description = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else None
    path = None if prefix is None else GOLDENS / name / f"{prefix}.safetensors"
    return openglm.load(
        GOLDENS / name,
        dtype=dtype or "float32",
        device="cpu",
        description=description,
        prefix=path,
    )


def make_engine(name: str, pages: int = 64, prefix: str | None = None, **settings: Any) -> Engine:
    """An engine with so many pages."""
    network = load(name, prefix).network
    config = network.config
    one = 2 * config.num_cached_layers * config.kv_heads * config.head_dim * PAGE * 4
    return Engine(network, memory_bytes=pages * one, **settings)


def random_prompt(name: str, rng: random.Random, length: int | None = None) -> Prompt:
    """A prompt in the style of the family, with one to three blanks where it has any."""
    config = load(name).config
    length = length or rng.randint(4, config.max_position_embeddings // 2)
    ids = [rng.randrange(3, config.vocab_size) for _ in range(length)]
    ends = frozenset(rng.sample(range(3, config.vocab_size), 4))
    family, _, _ = name.partition("@")
    if family in CAUSAL:
        return causal_prompt(ids, ends)
    style = "grow" if family in GROW else "refeed"
    places = sorted(rng.sample(range(length), rng.randint(1, min(3, length))))
    long_id = 97
    ids = [token if token != long_id else 5 for token in ids]
    for place in places[rng.randint(0, 1) :]:  # a long blank in the middle, sometimes
        ids[place] = rng.choice([96, long_id])
    return Prompt(ids, places, [""] * (len(places) + 1), 100, ends, style, long_id)


def random_params(name: str, prompt: Prompt, rng: random.Random) -> SamplingParams:
    """Greedy or sampled settings that the prompt leaves room for."""
    most = min(room(load(name).config, prompt), 14)
    sampled = {"temperature": 1.3, "seed": rng.randrange(2**32), "top_p": 0.95}
    return SamplingParams(
        max_tokens=rng.randint(1, most),
        repetition_penalty=rng.choice([1.0, 1.2]),
        frequency_penalty=rng.choice([0.0, 0.5]),
        logit_bias={rng.randrange(3, 90): 2.0},
        **(sampled if rng.random() < 0.7 else {}),
    )


def random_asked(name: str, rng: random.Random) -> Asked:
    """A prompt with its settings, and sometimes with an end as that of a stop string."""
    prompt = random_prompt(name, rng)
    divisor = rng.choice([4, 9])
    ends = rng.choice([None, lambda blank: sum(blank[-2:]) % divisor == 0])
    return Asked(prompt, random_params(name, prompt, rng), (), ends)


def alone(
    name: str, asked: Asked | tuple[Prompt, SamplingParams], prefix: str | None = None
) -> list[Step]:
    """What the same request writes with a cache of its own."""
    prompt, params, *rest = asked
    return list(Filler(load(name, prefix).network, prompt, params, (), *rest).run())


def finish(engine: Engine) -> None:
    """Steps until nothing is left; then nobody holds a page. A line that stands still fails."""
    for _ in range(MOST_STEPS):
        if not engine.has_work:
            break
        engine.step()
    assert not engine.has_work
    assert not any(engine.pool.references)
    assert engine.pool.num_free == engine.pool.num_pages


def run_together(engine: Engine, every: list[Asked], rng: random.Random) -> list[Request]:
    """Adds the requests at random steps and finishes all of them."""
    requests = []
    for asked in every:
        requests.append(engine.add(*asked))
        for _ in range(rng.choice([0, 0, 1, 5])):
            engine.step()
    finish(engine)
    return requests


ROUNDING = 1e-4 if module() is None else 0.0
"""Of log p: plain torch sums otherwise for another number of rows, the kernels do not."""


def assert_same_steps(found: list[Step], expected: list[Step], tolerance: float = ROUNDING) -> None:
    """Same tokens, blanks and ends, and log p."""
    kinds = [[(s.blank, s.token, s.finish_reason) for s in steps] for steps in (found, expected)]
    assert kinds[0] == kinds[1]
    numbers = [[s.log_probability for s in steps] for steps in (found, expected)]
    assert numbers[0] == pytest.approx(numbers[1], abs=tolerance)
