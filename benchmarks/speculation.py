"""Claim: guessing ahead pays where a text copies, and costs nothing where it does not.

The network is INT4 ChatGLM2-6B with random weights, which would write noise. So its text is forced:
a rule of the sampler leaves one token possible, the next of a known answer. Each step costs what it
costs a trained model, and guesses are right as often as they are in that answer. The quotation is
of random tokens, the free text goes on with a fable behind another. Code edit, summary and chat are
short texts written for this (`texts/`); all are in the tokens of `mini`, which are shorter than
those of ChatGLM2.

There is no small trained model of this vocabulary. What its guesses cost is measured with a small
network of random weights, and how often they are right is given: 60 to 90 % is what trained pairs
are said to reach (Leviathan et al. 2023, table 3), 0 % the worst that can be.

All write the same texts in turn: whoever has written least goes on, so that a busy minute slows
everybody down.
"""

import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

import openglm
from openglm.checkpoints import load_random
from openglm.compiled.transform import can_compile, compiled
from openglm.config import ModelConfig
from openglm.engine.engine import Engine
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import causal_prompt
from openglm.engine.speculation import Drafter, ModelDrafter
from openglm.home import find_model
from openglm.model import Transformer
from openglm.scheme import find_scheme
from openglm.tokenizers import find_tokenizer

MODEL, DTYPE = "chatglm2-6b", "int4-g128+embeddings+head"
DRAFT = {"hidden_size": 1024, "num_layers": 4, "num_attention_heads": 8, "intermediate_size": 3456}
"""Its sizes: 186 M parameters, 3 % of the model's, most of them embedding and head."""
CHANCES = (0.9, 0.75, 0.6, 0.0)
"""How often its guesses are right."""
READ, NEW, REPEATS, DRAFTS = 128, 48, 3, 8
"""Tokens of the quoted document and of the fable; tokens written, how often, and guessed."""
HERE = Path(__file__).parent
FABLES = HERE.parent / "recipes" / "tiny" / "text.txt"
TEXTS = {"code edit": "code", "summary": "summary", "chat": "chat"}
BORDER = "\n=====\n"
"""Between prompt and answer."""
MEMORY_BYTES = 1 << 27
"""Of keys and values, for a thousand tokens and more."""
PLAIN, GUESSED = "plain", "guessed"


class Text(NamedTuple):
    """Token ids of a prompt, and of what is written behind it."""

    prompt: list[int]
    answer: list[int]


class Run(NamedTuple):
    """One text, written once."""

    tokens: list[int]
    seconds: float
    steps: int
    drafted: int
    accepted: int


class Guided(ModelDrafter):
    """A draft model that is right as often as it is told to be, in the time that it takes.

    Args:
        model: guesses; what it guesses is thrown away.
        text: what will be written.
        chance: of each guess to be right.
    """

    def __init__(self, model: Transformer, text: Text, chance: float) -> None:
        self.known = [*text.prompt, *text.answer]
        super().__init__(model, DRAFTS, len(self.known))
        self.chance = chance
        self.draw = random.Random(0)

    def _guess(self, tokens: Sequence[int], passes: int, limit: int) -> list[int]:
        count = len(super()._guess(tokens, passes, limit))
        right = self.known[len(tokens) :][:count]
        guesses = [token if self.draw.random() < self.chance else token + 1 for token in right]
        self._read = [*tokens, *guesses[:-1]]  # or it would read again what it had guessed right
        return guesses


def measure() -> dict[str, Any]:
    """Tokens/s of each text, with guesses from the text itself and from draft models."""
    network = openglm.load(MODEL, dtype=DTYPE, random_weights=True, device="cpu").network
    draft = draft_model(network.config)
    texts = workloads()
    return {
        "model": f"{MODEL} {DTYPE}, random weights",
        "draft_model": f"{draft.config.num_parameters:,} parameters in {DTYPE}, random weights",
        "max_drafts": DRAFTS,
        "new_tokens": NEW,
        "results": {kind: looked_up(network, text) for kind, text in texts.items()},
        "draft_results": drafted(network, draft, texts["free text"]),
    }


def workloads() -> dict[str, Text]:
    """What is written, by its kind."""
    tokenizer = find_tokenizer(find_model("mini"))
    assert tokenizer is not None
    draw = random.Random(0)
    document = [draw.randrange(100, tokenizer.vocab_size) for _ in range(READ)]
    texts = {"quotation": Text(document, document)}
    for kind, name in TEXTS.items():
        parts = (HERE / "texts" / f"{name}.txt").read_text(encoding="utf-8").split(BORDER)
        texts[kind] = Text(*(tokenizer.encode(part) for part in parts))
    fables = tokenizer.encode(FABLES.read_text(encoding="utf-8"))
    texts["free text"] = Text(fables[:READ], fables[READ : READ + NEW])
    return texts


def draft_model(config: ModelConfig) -> Transformer:
    """A small network with the vocabulary and positions of a large one."""
    small = dataclasses.replace(config, **DRAFT)
    network = load_random(small, torch.bfloat16, "cpu", find_scheme(DTYPE))
    return compiled(network) if can_compile(network) else network


def looked_up(network: Transformer, text: Text) -> dict[str, Any]:
    """A text with guesses from itself."""
    engines = {
        PLAIN: Engine(network, memory_bytes=MEMORY_BYTES),
        GUESSED: Engine(network, memory_bytes=MEMORY_BYTES, max_drafts=DRAFTS),
    }
    return race(engines, text)[GUESSED]


def drafted(network: Transformer, draft: Transformer, text: Text) -> dict[str, Any]:
    """A text with guesses of a draft model, by how often they are right."""
    drafters: dict[str, Callable[[], Drafter]] = {
        f"{chance:.0%} right": lambda chance=chance: Guided(draft, text, chance)
        for chance in CHANCES
    }
    names = (PLAIN, *drafters)
    engines = {name: Engine(network, memory_bytes=MEMORY_BYTES) for name in names}
    return race(engines, text, drafters)


def race(
    engines: Mapping[str, Engine],
    text: Text,
    drafters: Mapping[str, Callable[[], Drafter]] | None = None,
) -> dict[str, dict[str, Any]]:
    """Writes a text with every engine, several times; all but the plain one against that.

    Args:
        engines: by name, a plain one among them.
        text: what they write.
        drafters: made for each text, in the place of the engine's own.
    """
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    for _ in range(REPEATS):
        found = _write(engines, text, drafters or {})
        for name, run in found.items():
            assert run.tokens == found[PLAIN].tokens, f"{name} writes another text"
            runs[name].append(run)
    return {name: _against(runs[PLAIN], own) for name, own in runs.items() if name != PLAIN}


def _against(plain: list[Run], own: list[Run]) -> dict[str, Any]:
    """Medians; steps and guesses are the same each time."""
    ratios = [a.seconds / b.seconds for a, b in zip(plain, own, strict=True)]
    return {
        "plain_tokens_per_s": median(plain[0].steps / run.seconds for run in plain),
        "guessed_tokens_per_s": median(plain[0].steps / run.seconds for run in own),
        "ratio": median(ratios),
        "tokens_per_step": plain[0].steps / own[0].steps,
        "drafted_tokens": own[0].drafted,
        "accepted_tokens": own[0].accepted,
    }


def _write(
    engines: Mapping[str, Engine], text: Text, drafters: Mapping[str, Callable[[], Drafter]]
) -> dict[str, Run]:
    """The text once by every engine, in turn; seconds and steps are those behind the first token.

    An engine that is asked for the second time has the prompt's pages still.
    """

    def force(scores: Tensor, blank: Any) -> None:
        wanted = text.answer[len(blank)]
        score = scores[wanted].clone()
        scores.fill_(-torch.inf)
        scores[wanted] = score

    params = SamplingParams(max_tokens=NEW, temperature=1.0, seed=0)
    prompt = causal_prompt(text.prompt, frozenset())
    requests = {name: engine.add(prompt, params, [force]) for name, engine in engines.items()}
    for name, make in drafters.items():
        requests[name].drafter = make()
    for name, engine in engines.items():
        while not requests[name].steps:
            engine.step()
    before = {name: engine.statistics for name, engine in engines.items()}
    seconds = dict.fromkeys(engines, 0.0)
    while unfinished := [name for name, engine in engines.items() if engine.has_work]:
        name = min(unfinished, key=lambda name: len(requests[name].steps))
        start = perf_counter()
        engines[name].step()
        seconds[name] += perf_counter() - start
    return {
        name: Run(
            request.blank(),
            seconds[name],
            (now := engines[name].statistics).num_steps - before[name].num_steps,
            now.num_drafted - before[name].num_drafted,
            now.num_accepted - before[name].num_accepted,
        )
        for name, request in requests.items()
    }
