"""Greedy generation of the later models, id for id, as the official `generate` recorded it."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import openglm
from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.beam_rules import GLM_130B
from openglm.engine.decoder import Decoder
from openglm.engine.fill import Filler
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt, causal_prompt
from openglm.engine.sampling import Choice, Sampler

GOLDENS = Path(__file__).parents[1] / "goldens"
CAUSAL = ["chatglm2_tiny", "chatglm3_32k_tiny", "glm4_9b_hf_tiny", "glm4_0414_hf_tiny"]


@cache
def load(name):
    meta = GOLDENS / name.split("/")[0] / "meta.json"
    description = json.loads(meta.read_text(encoding="utf-8")) if meta.is_file() else None
    return openglm.load(GOLDENS / name, dtype="float32", device="cpu", description=description)


def greedy(model, prompt, max_tokens):
    """Ids that a greedy run writes, with the end token if there was one."""
    filler = Filler(model.network, prompt, SamplingParams(max_tokens=max_tokens))
    return [step.token for step in filler.run() if step.token is not None]


def assert_continues(found, recorded, end_ids):
    """The recording may stop at an end token, which `found` does not have."""
    if len(found) < len(recorded):
        assert recorded[len(found)] in end_ids
    assert found == recorded[: len(found)]


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models(name):
    """Generation token by token takes another path than the official one."""
    recorded = np.load(GOLDENS / "chatglm" / name / "cases.npz")
    ids = recorded["greedy_ids"][0].tolist()
    num_prompt = (
        recorded["greedy_prompt"].shape[1]
        if "greedy_prompt" in recorded
        else int(recorded["greedy_n_prompt"])
    )
    prompt = causal_prompt(ids[:num_prompt], frozenset({2}))
    found = greedy(load(f"chatglm/{name}"), prompt, len(ids) - num_prompt)
    assert_continues(found, ids[num_prompt:], {2})
    assert len(found) > 3


@pytest.mark.parametrize("name", ["chatglm6b_tiny", "chatglm6b_28layers"])
def test_chatglm6b(name):
    """The long blank of ChatGLM-6B is fed at wrong positions."""
    recorded = np.load(GOLDENS / "chatglm" / name / "cases.npz")
    model = load(f"chatglm/{name}")
    tokens = model.token_ids
    asked, ids = recorded["greedy_prompt"][0].tolist(), recorded["greedy_ids"][0].tolist()
    assert asked[-2:] == [tokens["gmask"], tokens["sop"]]
    ends = frozenset({tokens["eop"]})
    prompt = Prompt(
        asked[:-1], [len(asked) - 2], ["", ""], tokens["sop"], ends, "refeed", tokens["gmask"]
    )
    found = greedy(model, prompt, len(ids) - len(asked))
    assert_continues(found, ids[len(asked) :], ends)
    assert len(found) > 3


@pytest.mark.parametrize("kind", ["gmask", "mask"])
def test_glm130b(kind):
    """Positions of a long blank must count on, those of a short one stay."""
    recorded = np.load(GOLDENS / "glm130b" / "generation.npz")
    model = load("glm130b/sat_tp1")
    tokens = model.token_ids
    context = recorded[f"{kind}_context"].tolist()
    row = [i for i in recorded[f"{kind}_greedy_gen8"][0, 0].tolist() if i >= 0]
    assert context[-1] == tokens["sop"]
    ends = frozenset({tokens["eop"], tokens["eos"]})
    place = context.index(tokens[kind])
    prompt = Prompt(context[:-1], [place], ["", ""], tokens["sop"], ends, "refeed", tokens["gmask"])
    found = greedy(model, prompt, len(row) - len(context))
    assert_continues(found, row[len(context) :], ends)


def hypotheses(row, context, ends):
    """Written ids of a recorded row, without its end token."""
    written = [token for token in row[len(context) :].tolist() if token >= 0]
    return written[:-1] if written[-1] in ends else written


@pytest.mark.parametrize("kind", ["gmask", "mask"])
@pytest.mark.parametrize(
    ("settings", "end"),
    [
        ("beams4_lp1.0_ng3_min2_gen8", None),
        ("beams3_lp0.7_ng0_min0_gen6", None),
        ("end{}_beams4_lp1.0_ng3_min0_gen8", True),
        ("end{}_beams3_lp0.7_ng0_min2_gen8", True),
    ],
)
def test_beams_of_glm130b(kind, settings, end):
    """Beam search ranks as another model's does: the context counts in GLM-130B's lengths."""
    recorded = np.load(GOLDENS / "glm130b" / "generation.npz")
    model = load("glm130b/sat_tp1")
    tokens = model.token_ids
    context = recorded[f"{kind}_context"].tolist()
    own_end = {"gmask": 287, "mask": 300}[kind]
    ends = {own_end} if end else {tokens["eop"], tokens["eos"]}
    name = f"{kind}_{settings.format(own_end)}"
    beams, penalty, ngram, shortest, longest = re.fullmatch(
        r".*beams(\d+)_lp([\d.]+)_ng(\d+)_min(\d+)_gen(\d+)", name
    ).groups()
    decoder = Decoder(model.network, torch.tensor([context[:-1]]), int(longest))
    place = context.index(tokens[kind])
    found = beam_search(
        decoder,
        [context],
        [len(context) - 2 if kind == "gmask" else place],
        BeamSettings(
            num_beams=int(beams),
            max_tokens=int(longest),
            length_penalty=float(penalty),
            no_repeat_ngram_size=int(ngram),
            min_tokens=int(shortest),
            end_ids=ends,
            rule=GLM_130B,
        ),
        counts_on=kind == "gmask",
    )[0]
    expected = [hypotheses(row, context, ends) for row in recorded[name]]
    assert [hypothesis.tokens for hypothesis in found] == expected


@pytest.mark.parametrize("row", [0, 1])
def test_codegeex(row):
    """Completions of CodeGeeX start one token late, or forget the prompt."""
    recorded = np.load(GOLDENS / "codegeex" / "golden.npz")
    length = int(recorded["gen_prompt_lens"][row])
    asked = recorded["gen_prompt_ids"][row, :length].tolist()
    ids = recorded[f"gen_single_{row}_tokens"].tolist()
    eos = int(recorded["eos_id"])
    found = greedy(load("codegeex"), causal_prompt(asked, frozenset({eos})), 11)
    assert_continues(found, ids[length : length + 11], {eos})
    assert found


def test_blanks_of_glm130b_are_filled_one_after_the_other():
    """The second blank is filled without seeing what stands in the first."""
    first = np.load(GOLDENS / "glm130b" / "two_blanks_call1.npz")
    second = np.load(GOLDENS / "glm130b" / "two_blanks_call2.npz")
    model = load("glm130b/sat_tp1")
    tokens = model.token_ids
    one = first["input_ids"][0].tolist()
    two = second["input_ids"][0].tolist()
    context = one[: one.index(tokens["sop"])]
    places = [i for i, token in enumerate(context) if token == tokens["mask"]]
    assert len(places) == 2
    grown = two[: two.index(tokens["sop"])]
    written = grown[places[0] : places[0] + len(grown) - len(context) + 1]
    assert grown == context[: places[0]] + written + context[places[0] + 1 :]
    ends = frozenset({tokens["eop"]})
    prompt = Prompt(context, places, ["", "", ""], tokens["sop"], ends, "refeed", tokens["gmask"])
    filler = Filler(model.network, prompt, SamplingParams(max_tokens=len(written)))
    read = []
    begin = filler._begin
    filler._begin = lambda: read.append(list(filler.writer.context_ids)) or begin()
    script = iter([*written, *[5] * len(written)])
    filler.sampler.choose = lambda logits, blank: Choice(next(script), 0.0)
    steps = list(filler.run())
    assert read == [grown]
    assert [step.token for step in steps if step.blank == 0][:-1] == written


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("filt_topk5_keep", {"top_k": 5}),
        ("filt_topp09_keep", {"top_p": 0.9}),
        ("filt_topk20_topp08_keep", {"top_k": 20, "top_p": 0.8}),
    ],
)
def test_filters_of_codegeex(name, options):
    """Sampling keeps a token too many or too few, so published settings mean something else."""
    recorded = np.load(GOLDENS / "codegeex" / "golden.npz")
    params = SamplingParams(temperature=1.0, seed=0, **options)
    for logits, keep in zip(recorded["logits"][0], recorded[name], strict=True):
        sampler = Sampler(params, [])
        probabilities = sampler.probabilities(torch.from_numpy(logits))
        assert (probabilities > 0).numpy().tolist() == keep.tolist()
