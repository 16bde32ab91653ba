"""Claim: guessing ahead pays where a text quotes itself, and costs nothing where it does not.

INT4 ChatGLM2-6B with random weights cannot quote, so a rule of the sampler makes it: the answer
repeats the prompt, as when a document is quoted. Free text is drawn from the model as it is, which
hardly ever repeats itself. Both are written with and without guesses, and must be equal.
"""

import random
from statistics import median
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

import openglm
from openglm.engine.engine import Engine
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.model import Transformer

MODEL, DTYPE = "chatglm2-6b", "int4-g128+embeddings+head"
DOCUMENT, NEW, REPEATS, DRAFTS = 128, 48, 3, 8


def measure() -> dict[str, Any]:
    """Tokens/s of both kinds of text, with and without guesses, in turn."""
    network = openglm.load(MODEL, dtype=DTYPE, random_weights=True, device="cpu").network
    draw = random.Random(0)
    document = [draw.randrange(100, 60_000) for _ in range(DOCUMENT)]
    results = {}
    for kind in ("quotation", "free text"):
        speeds: dict[int, list[float]] = {0: [], DRAFTS: []}
        texts = {}
        for _ in range(REPEATS):
            for drafts, found in speeds.items():
                texts[drafts], speed = _write(network, document, drafts, kind == "quotation")
                found.append(speed)
        assert texts[0] == texts[DRAFTS]
        plain, guessed = (median(found) for found in speeds.values())
        results[kind] = {
            "plain_tokens_per_s": plain,
            "guessed_tokens_per_s": guessed,
            "ratio": guessed / plain,
        }
    return {"model": f"{MODEL} {DTYPE}, random weights", "max_drafts": DRAFTS, "results": results}


def _write(
    network: Transformer, document: list[int], drafts: int, quotes: bool
) -> tuple[list[int], float]:
    """What is written behind the document, and tokens/s of decoding."""

    def quote(scores: Tensor, blank: Any) -> None:
        wanted = scores[document[len(blank)]].clone()
        scores.fill_(-torch.inf)
        scores[document[len(blank)]] = wanted

    params = SamplingParams(max_tokens=NEW, temperature=1.0, seed=0)
    prompt = causal_prompt(document, frozenset())
    engine = Engine(network, max_drafts=drafts)
    request = engine.add(prompt, params, [quote] if quotes else [])
    while not request.steps:
        engine.step()
    start, before = perf_counter(), len(request.blank())
    while engine.has_work:
        engine.step()
    return request.blank(), (NEW - before) / (perf_counter() - start)
