"""The ids of the command tokens, for vocabularies of the official sizes (fact sheet, 1.2)."""

from __future__ import annotations

import pytest

from openglm.errors import TokenizerError
from openglm.tokenizers.load import OPENERS
from openglm.tokenizers.special import LAYOUTS, layout

OFFICIAL = {
    ("bert", 30522): {
        "pad": 0,
        "eos": 0,
        "unk": 100,
        "cls": 101,
        "sep": 102,
        "mask": 103,
        "sop": 30522,
        "eop": 30523,
    },
    ("roberta", 50265): {
        "pad": 2,
        "eos": 2,
        "sep": 2,
        "cls": 0,
        "unk": 3,
        "mask": 50264,
        "sop": 50265,
        "eop": 50266,
        "gmask": 50267,
        "smask": 50268,
        "dblock": 50269,
    },
    ("gpt2", 50257): {
        "pad": 50256,
        "eos": 50256,
        "sop": 50257,
        "eop": 50258,
        "cls": 50259,
        "mask": 50260,
        "sep": 50261,
        "unk": 50262,
        "gmask": 50263,
        "smask": 50264,
        "dblock": 50265,
    },
    ("chinese", 50000): {
        "pad": 50000,
        "eos": 50000,
        "sep": 50001,
        "cls": 50002,
        "mask": 50003,
        "unk": 50004,
        "sop": 50006,
        "eop": 50007,
        "smask": 50008,
        "gmask": 50009,
        "dblock": 50010,
    },
    ("chinese-unfixed", 50000): {
        "pad": 50000,
        "eos": 50000,
        "sep": 50001,
        "cls": 50002,
        "mask": 50003,
        "unk": 50004,
        "sop": 50006,
        "eop": 50007,
        "gmask": 50007,
        "smask": 50008,
        "dblock": 50009,
    },
}


@pytest.mark.parametrize(("kind", "size"), OFFICIAL)
def test_command_ids_are_the_official_ones(kind: str, size: int) -> None:
    """Official weights would be fed other rows than they were trained with, and write nonsense."""
    special = LAYOUTS[kind].resolve(size)
    assert {token.role: token.id for token in special.tokens} == OFFICIAL[kind, size]


@pytest.mark.parametrize(
    ("kind", "size", "padded"),
    [
        ("bert", 30522, 30592),
        ("roberta", 50265, 50304),
        ("gpt2", 50257, 50304),
        ("chinese", 50000, 50048),
        ("chinese-unfixed", 50000, 50048),
    ],
)
def test_command_ids_lie_inside_the_padded_vocabulary(kind: str, size: int, padded: int) -> None:
    """The embedding table of the checkpoint would be too small for its own command tokens."""
    special = LAYOUTS[kind].resolve(size)
    assert max(special.ids) < padded
    assert -(-max(special.ids) // 128) * 128 == padded


def test_the_unfixed_chinese_gmask_shares_its_id_with_the_end_of_a_blank() -> None:
    """The quirk of GLM-10B-Chinese would be "repaired", and its long blanks would not work."""
    special = LAYOUTS["chinese-unfixed"].resolve(50000)
    assert special.gmask_id == special.eop_id == 50007
    assert special.texts[50007] == "[gMASK]"
    assert LAYOUTS["chinese"].resolve(50000).texts[50007] == "<|endofpiece|>"


def test_padding_is_the_end_mark_in_every_kind_of_glm() -> None:
    """Training asserts it in the official code; a padded batch would teach another end mark."""
    for kind in {kind for kind, _ in OFFICIAL}:
        special = LAYOUTS[kind].resolve(1000)
        assert special.pad_id == special.eos_id, kind


@pytest.mark.parametrize(
    ("kind", "stripping"),
    [
        ("bert", set()),
        ("roberta", {"<mask>", "[gMASK]", "[sMASK]"}),
        ("gpt2", {"[MASK]", "[gMASK]", "[sMASK]"}),
        ("chinese", {"[MASK]", "[gMASK]", "[sMASK]"}),
        ("chinese-unfixed", {"[MASK]", "[gMASK]", "[sMASK]"}),
        ("mini", {"[MASK]", "[gMASK]", "[sMASK]"}),
    ],
)
def test_which_blanks_swallow_the_space_before_them(kind: str, stripping: set[str]) -> None:
    """A space before `[MASK]` would be a token that the model never saw there in training."""
    tokens = LAYOUTS[kind].resolve(1000).tokens
    assert {token.text for token in tokens if token.lstrip} == stripping


def test_models_without_task_masks_use_the_short_blank_for_all() -> None:
    """GLM-Large would be given an id that has no trained embedding."""
    special = LAYOUTS["bert"].resolve(30522)
    assert special.smask_id == special.gmask_id == special.mask_id == 103
    assert special.dblock_id is None
    assert [token.text for token in special.mask_tokens] == ["[MASK]"]
    with_tasks = LAYOUTS["gpt2"].resolve(50257)
    assert {token.id for token in with_tasks.mask_tokens} == {50260, 50263, 50264}


def test_a_blank_ends_with_either_end_mark() -> None:
    """Long generation, which ends with the text's own end mark, would never stop."""
    assert LAYOUTS["gpt2"].resolve(50257).end_ids == {50256, 50258}


def test_a_role_that_is_missing_is_explained() -> None:
    """A caller would get a KeyError without the tokens that there are."""
    with pytest.raises(TokenizerError, match="this tokenizer has no gmask token") as caught:
        LAYOUTS["bert"].resolve(30522).get("gmask")
    assert "[MASK]" in caught.value.hint


def test_an_unknown_kind_is_explained() -> None:
    """A slip in `tokenizer.kind` of a run configuration would end in a KeyError."""
    with pytest.raises(TokenizerError, match="unknown tokenizer kind 'gpt-2'") as caught:
        layout("gpt-2")
    assert caught.value.hint.startswith("did you mean 'gpt2'")
    assert set(OPENERS) == set(LAYOUTS)
