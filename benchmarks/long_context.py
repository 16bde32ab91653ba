"""Claim: reading 32K tokens takes no more memory than 2K, but for the pages of keys and values.

ChatGLM2-6B-32K has the shapes of ChatGLM2-6B, whose 32,768 positions all count here; what it does
to an angle changes no size. Weights and tokens are random. A table of 32K x 32K scores would take
4.3 GB for each head: there is none. Flatness is measured on a few layers of the real width, since
layers go through the same working memory one after the other. The dialogue of 8K tokens is of the
whole model: every turn reads on behind the pages of the turns before, with the engine's defaults.
Every case runs in a process of its own.
"""

import dataclasses
import random
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

from benchmarks.record import alone
from openglm.checkpoints import load_random
from openglm.compiled.transform import can_compile, compiled
from openglm.engine.engine import Engine
from openglm.engine.paged_cache import KV_DTYPES, page_bytes, pages_for
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.model import Transformer
from openglm.process import peak_bytes, reset_peak, resident_bytes
from openglm.registry import preset
from openglm.scheme import find_scheme

MODEL, DTYPE = "chatglm2-6b", "int4-g128+embeddings+head"
LAYERS, LENGTHS, CACHES = 2, (2048, 8192, 32768), ("int8", "bfloat16")
DIALOGUE, TURNS, ANSWER = 8192, 8, 32
NEW = 8
TOLD = 2048
"""Tokens between two words of progress."""


def measure() -> dict[str, Any]:
    """Memory beyond weights and pages for each length, and that of the dialogue."""
    flat = {}
    for cache in CACHES:
        cases = {size: alone(read, MODEL, LAYERS, size, cache) for size in LENGTHS}
        least, most = (cases[size]["working_bytes"] for size in (LENGTHS[0], LENGTHS[-1]))
        flat[cache] = {"tokens": cases, "growth_bytes": most - least}
    layers = preset(MODEL).model.num_layers
    return {
        "model": f"{MODEL} {DTYPE}, random weights",
        "layers": {"flat": LAYERS, "dialogue": layers},
        "flat": flat,
        "dialogue": alone(talk, MODEL, layers, DIALOGUE, TURNS, ANSWER),
    }


def read(name: str, num_layers: int, num_tokens: int, cache: str) -> dict[str, Any]:
    """One request of `num_tokens`, the new ones included; bytes of the process before and at most.

    `working_bytes` is what is taken at most beyond the weights and the pages.
    """
    network = _network(name, num_layers)
    page = page_bytes(network.config, KV_DTYPES[cache])
    memory = pages_for(num_tokens) * page
    before = resident_bytes()
    reset_peak()
    engine = Engine(network, memory_bytes=memory, kv_dtype=cache)
    prompt = _random_ids(network, num_tokens - NEW)
    read_s, decode_s, _ = _run(engine, prompt, NEW, f"{num_tokens} tokens, {cache}")
    return {
        "before_bytes": before,
        "page_bytes": memory,
        "peak_bytes": peak_bytes(),
        "working_bytes": peak_bytes() - before - memory,
        "prefill_tokens_per_s": len(prompt) / read_s,
        "decode_tokens_per_s": 1 / decode_s,
    }


def talk(
    name: str, num_layers: int, num_tokens: int, num_turns: int, answer: int
) -> dict[str, Any]:
    """A dialogue that ends with `num_tokens`; the largest size of the process, loading included."""
    network = _network(name, num_layers)
    engine = Engine(network)
    asked = num_tokens // num_turns - answer
    tokens: list[int] = []
    for turn in range(num_turns):
        tokens += _random_ids(network, asked, seed=turn)
        read_s, decode_s, written = _run(engine, tokens, answer, f"turn {turn + 1} of {num_turns}")
        tokens += written
    return {
        "tokens": len(tokens),
        "turns": num_turns,
        "kv_dtype": str(engine.cache.dtype).removeprefix("torch."),
        "page_bytes": pages_for(len(tokens)) * engine.cache.page_bytes,
        "weight_bytes": sum(parameter.nbytes for parameter in network.parameters()),
        "peak_bytes": peak_bytes(),
        "tokens_found_in_pages": engine.statistics.num_prefix_hits,
        "last_turn": {
            "first_token_s": read_s,
            "prefill_tokens_per_s": asked / read_s,
            "decode_tokens_per_s": 1 / decode_s,
        },
    }


def _run(engine: Engine, prompt: list[int], new: int, what: str) -> tuple[float, float, list[int]]:
    """Seconds until the first token, seconds per further one, and what was written."""
    params = SamplingParams(max_tokens=new)
    request = engine.add(causal_prompt(prompt, frozenset()), params)
    tell = _teller(what)
    start = perf_counter()
    while not request.steps:
        engine.step()
        tell(request.num_cached)
    first = perf_counter()
    while engine.has_work:
        engine.step()
    return first - start, (perf_counter() - first) / (new - 1), request.blank()


def _teller(what: str) -> Callable[[int], None]:
    """Tells how far reading is, every `TOLD` tokens, since it may take an hour."""
    start, told = perf_counter(), 0

    def tell(num_read: int) -> None:
        nonlocal told
        if num_read >= told + TOLD:
            told = num_read
            size = f"{resident_bytes() / 1e9:.2f} GB"
            sys.stderr.write(f"{what}: {num_read} read, {perf_counter() - start:.0f} s, {size}\n")

    return tell


def _network(name: str, num_layers: int) -> Transformer:
    """Some layers of a model with random weights, on the compiled kernels if there are any."""
    config = dataclasses.replace(preset(name).model, num_layers=num_layers)
    network = load_random(config, torch.bfloat16, "cpu", find_scheme(DTYPE))
    return compiled(network) if can_compile(network) else network


def _random_ids(network: Transformer, count: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(network.config.vocab_size) for _ in range(count)]
