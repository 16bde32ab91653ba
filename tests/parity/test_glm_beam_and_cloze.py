"""Beam search and cloze scores against the recorded outputs of the official GLM code."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from openglm.engine.beam import beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.score import score_choices, unidirectional_input, verbalizer_logits

ATOL = 1e-5
MASK_POSITION = 1  # the recorded sources start with [CLS] [MASK]


def run_beam_search(model, recorded, tag, sop_id, rows):
    beams, length_penalty, ngram, min_tokens, max_tokens = recorded[
        f"{tag}_settings_beams_lp_ngram_minlen_maxsteps"
    ].tolist()
    return beam_search(
        Decoder(model.network, recorded["source_ids"][rows], int(max_tokens)),
        [MASK_POSITION] * len(rows),
        sop_id=sop_id,
        end_ids=[int(recorded[f"{tag}_end_token"])],
        num_beams=int(beams),
        max_tokens=int(max_tokens),
        length_penalty=length_penalty,
        no_repeat_ngram_size=int(ngram),
        min_tokens=int(min_tokens),
    )


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
        context,
        context.index(special_ids["MASK"]),
        [recorded[f"choice_{i}"].tolist() for i in range(3)],
        special_ids["sop"],
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
    place, sop = context.index(special_ids["MASK"]), special_ids["sop"]
    network = checkpoint("megatron").network
    together = score_choices(network, context, place, choices, sop)
    for choice, score in zip(choices, together, strict=True):
        alone = score_choices(network, context, place, [choice], sop)[0]
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
    built = unidirectional_input(
        text,
        choice,
        cls_id=special_ids["ENC"],
        gmask_id=special_ids["gMASK"],
        sop_id=special_ids["sop"],
    )
    assert built.input_ids == recorded["input_ids"][:length].tolist()
    found = [built.position_ids, built.block_position_ids]
    assert found == recorded["position_ids"][:, :length].tolist()
    assert built.context_length == int(recorded["sep"])
