"""Beam search against a plain one that recomputes everything, on networks that like to end.

The recorded searches of the official code (tests/parity) hardly end before their length limit;
here end tokens are common, there may be two of them, and the vocabulary is small.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helpers_models import random_model, tiny_config
from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.decoder import Decoder
from openglm.nn.masks import MaskSpec

SOP = 11
CONTEXTS = torch.tensor([[1, 10, 2], [10, 3, 4]])
MASKS = [1, 0]


@cache
def network():
    model = random_model(tiny_config(vocab_size=12))
    model.final_norm.weight.mul_(0.4)  # flat enough for every token to have a chance
    model.final_norm.bias.mul_(0.4)
    # 5 and 7 are often the two likeliest: as end tokens they crowd out all others.
    for token, size in ((5, 4.0), (7, 3.9)):
        model.word_embeddings.weight[token] = size * model.final_norm.bias
    return model


@cache
def next_log_probabilities(row: int, tokens: tuple[int, ...]) -> list[float]:
    """Log p of each next token, from one full pass."""
    blank = [SOP, *tokens]
    ids = [*CONTEXTS[row].tolist(), *blank]
    positions = [0, 1, 2, *[MASKS[row]] * len(blank)]
    blocks = [0, 0, 0, *range(1, len(blank) + 1)]
    rows = (torch.tensor([values]) for values in (ids, positions, blocks))
    with torch.no_grad():
        hidden = network()(*rows, MaskSpec.prefix(torch.tensor([3])))
        return torch.log_softmax(network().logits(hidden)[0, -1], dim=-1).tolist()


def repeats(tokens: tuple[int, ...], size: int) -> bool:
    """Whether the last n-gram occurred before."""
    ngrams = [tokens[i : i + size] for i in range(len(tokens) - size + 1)]
    return size > 0 and bool(ngrams) and ngrams[-1] in ngrams[:-1]


def plain_beam_search(
    next_log_p: Callable[[tuple[int, ...]], list[float]],
    *,
    end_ids: Collection[int],
    num_beams: int,
    max_tokens: int,
    length_penalty: float,
    no_repeat_ngram_size: int,
    min_tokens: int,
) -> tuple[list[int], float]:
    """Extends every live text by every token, then keeps and ends what the rules say."""

    def normalised(log_p: float, length: int) -> float:
        return log_p / max(length, 1) ** length_penalty

    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(max_tokens):
        extended = [
            (log_p + step, (*tokens, token))
            for log_p, tokens in live
            for token, step in enumerate(next_log_p(tokens))
            if not repeats((*tokens, token), no_repeat_ngram_size)
            and not (token in end_ids and length < min_tokens)
        ]
        extended.sort(key=lambda item: -item[0])
        for log_p, tokens in extended[:num_beams]:
            if tokens[-1] in end_ids:
                finished.append((normalised(log_p, length), tokens[:-1]))
        finished = sorted(finished, key=lambda item: -item[0])[:num_beams]
        live = [item for item in extended if item[1][-1] not in end_ids][:num_beams]
        possible = normalised(extended[0][0], length)
        if len(finished) == num_beams and finished[-1][0] >= possible:
            break
    else:
        finished += [(normalised(log_p, len(tokens)), tokens) for log_p, tokens in live]
    score, tokens = max(finished)
    return list(tokens), score


@settings(max_examples=40)
@given(
    end_ids=st.sampled_from([(5,), (7,), (5, 7), (0, 8), (0, 5, 7)]),
    num_beams=st.integers(1, 4),
    max_tokens=st.integers(1, 6),
    length_penalty=st.sampled_from([0.0, 0.7, 1.0, 2.0]),
    no_repeat_ngram_size=st.sampled_from([0, 2, 3]),
    min_tokens=st.integers(0, 2),
)
# The one setting found where an end token ranked behind the first num_beams changes the result.
@example(
    end_ids=(7,),
    num_beams=3,
    max_tokens=6,
    length_penalty=0.7,
    no_repeat_ngram_size=0,
    min_tokens=2,
)
def test_beam_search_equals_a_plain_one(end_ids, **options):
    """Beams that end early are lost, mixed up between texts, or ranked by a wrong length."""
    decoder = Decoder(network(), CONTEXTS, options["max_tokens"])
    contexts = [[*row, SOP] for row in CONTEXTS.tolist()]
    found = beam_search(decoder, contexts, MASKS, BeamSettings(end_ids=end_ids, **options))
    for row, (hypothesis, *_) in enumerate(found):
        tokens, score = plain_beam_search(
            lambda tokens, row=row: next_log_probabilities(row, tokens), end_ids=end_ids, **options
        )
        assert hypothesis.tokens == tokens
        assert hypothesis.score == pytest.approx(score, abs=1e-4)
