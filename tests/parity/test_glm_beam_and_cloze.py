"""Beam search and cloze scores against the recorded outputs of the official GLM code."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.score import ScoringPrompt, score_choices, verbalizer_logits

ATOL = 1e-5
MASK_POSITION = 1  # the recorded sources start with [CLS] [MASK]


def run_beam_search(model, recorded, tag, sop_id, rows):
    beams, length_penalty, ngram, min_tokens, max_tokens = recorded[
        f"{tag}_settings_beams_lp_ngram_minlen_maxsteps"
    ].tolist()
    settings = BeamSettings(
        num_beams=int(beams),
        max_tokens=int(max_tokens),
        length_penalty=length_penalty,
        no_repeat_ngram_size=int(ngram),
        min_tokens=int(min_tokens),
        end_ids=[int(recorded[f"{tag}_end_token"])],
    )
    sources = recorded["source_ids"][rows]
    decoder = Decoder(model.network, sources, int(max_tokens))
    contexts = [[*row, sop_id] for row in sources.tolist()]
    found = beam_search(decoder, contexts, [MASK_POSITION] * len(rows), settings)
    return [best[0] for best in found]


def assert_same_hypotheses(found, recorded, tag, rows):
    end = int(recorded[f"{tag}_end_token"])
    for hypothesis, row in zip(found, rows, strict=True):
        expected = recorded[f"{tag}_tokens"][row].tolist()
        if end in expected:
            expected = expected[: expected.index(end)]
        assert hypothesis.tokens == expected
        assert hypothesis.score == pytest.approx(float(recorded[f"{tag}_scores"][row]), abs=ATOL)


@pytest.mark.parametrize("tag", "abcde")
def test_beam_search(tag, checkpoint, golden, special_ids):
    """Summaries and questions come out differently than in the official evaluation."""
    recorded = golden("beam_search")
    found = run_beam_search(checkpoint("megatron"), recorded, tag, special_ids["sop"], [0, 1])
    assert_same_hypotheses(found, recorded, tag, [0, 1])


@pytest.mark.parametrize("tag", "bd")
@pytest.mark.parametrize("row", [0, 1])
def test_beam_search_of_one_row_does_not_depend_on_the_others(
    tag, row, checkpoint, golden, special_ids
):
    """The beams of one text get mixed with those of another in the same batch."""
    recorded = golden("beam_search")
    found = run_beam_search(checkpoint("megatron"), recorded, tag, special_ids["sop"], [row])
    assert_same_hypotheses(found, recorded, tag, [row])


@pytest.mark.parametrize("length_penalty", [0, 1])
def test_multi_token_cloze(length_penalty, checkpoint, golden, special_ids):
    """Multiple-choice answers get other scores than in the official SuperGLUE code."""
    recorded = golden("cloze_multi_token")
    context = [special_ids["ENC"], *recorded["context_ids"].tolist(), special_ids["eos"]]
    assert context == recorded["input_ids"][0, 0, : int(recorded["sep"][0, 0])].tolist()
    scores = score_choices(
        checkpoint("megatron").network,
        ScoringPrompt(context, context.index(special_ids["MASK"]), [special_ids["sop"]]),
        [recorded[f"choice_{i}"].tolist() for i in range(3)],
        length_penalty,
    )
    found = torch.tensor([score.score for score in scores])
    expected = recorded[f"scores_length_penalty_{length_penalty}"][0]
    assert_close(found, expected, atol=ATOL, rtol=0)


def test_multi_token_log_probabilities_make_up_the_score(checkpoint, golden, special_ids):
    """The log-probabilities per token that users see do not belong to the score."""
    recorded = golden("cloze_multi_token")
    context = recorded["input_ids"][0, 0, : int(recorded["sep"][0, 0])].tolist()
    choices = [recorded[f"choice_{i}"].tolist() for i in range(3)]
    prompt = ScoringPrompt(context, context.index(special_ids["MASK"]), [special_ids["sop"]])
    network = checkpoint("megatron").network
    together = score_choices(network, prompt, choices)
    for choice, score in zip(choices, together, strict=True):
        alone = score_choices(network, prompt, [choice])[0]
        assert score.log_probabilities == pytest.approx(alone.log_probabilities, abs=ATOL)
        assert len(score.log_probabilities) == len(choice)
        assert sum(score.log_probabilities) == pytest.approx(score.score, abs=ATOL)


def test_single_token_cloze(checkpoint, golden, special_ids):
    """Classification by one verbaliser token reads a wrong place or normalises the logits."""
    recorded = golden("cloze_single_token")
    context = recorded["input_ids"][0, : int(recorded["sep"][0])].tolist()
    found = verbalizer_logits(
        checkpoint("megatron").network,
        context,
        context.index(special_ids["MASK"]),
        recorded["verbalizer_ids"].tolist(),
        special_ids["sop"],
    )
    assert_close(found, recorded["scores"][0], atol=ATOL, rtol=0)


def test_row_of_logits_at_the_start_of_a_blank(checkpoint, golden, special_ids):
    """The decoder puts the start of a blank at a wrong position or block position."""
    recorded = golden("cloze_single_token")
    context = recorded["input_ids"][:, : int(recorded["sep"][0])]
    place = context[0].tolist().index(special_ids["MASK"])
    decoder = Decoder(checkpoint("megatron").network, context, 1)
    logits = decoder.feed_blank([special_ids["sop"]], place, 1)
    assert_close(logits, recorded["sop_position_logits"], atol=ATOL, rtol=0)


def test_layout_of_left_to_right_scoring(golden, special_ids):
    """Zero-shot choices are laid out differently than in the official code."""
    recorded = golden("build_uni_input")
    scored = recorded["loss_mask"].bool()
    length = int(scored.nonzero().max()) + 1
    choice = recorded["targets"][scored].tolist()
    text = recorded["input_ids"][3 : length - len(choice) + 1].tolist()
    context = [special_ids["ENC"], special_ids["gMASK"]]
    prompt = ScoringPrompt(context, 1, [special_ids["sop"], *text])
    fed = [*prompt.head, *choice[:-1]]
    assert [*prompt.context_ids, *fed] == recorded["input_ids"][:length].tolist()
    positions, blocks = (values.tolist() for values in prompt.positions(len(fed)))
    found = [[0, 1, *positions], [0, 0, *blocks]]
    assert found == recorded["position_ids"][:, :length].tolist()
    assert len(context) == int(recorded["sep"])
