"""Text to ids: expected ids are written out by hand over the small vocabularies of conftest.py."""

from __future__ import annotations

import pytest

from openglm.errors import TokenizerError
from openglm.tokenizers import Tokenizer
from openglm.tokenizers.bpe import BytePairTokenizer, byte_characters
from openglm.tokenizers.chinese import ChineseTokenizer
from openglm.tokenizers.mini import MiniTokenizer
from openglm.tokenizers.wordpiece import WordPieceTokenizer

KINDS = ("bert", "gpt2", "roberta", "chinese", "mini")


@pytest.fixture(params=KINDS)
def any_kind(request: pytest.FixtureRequest) -> Tokenizer:
    """Each tokenizer in turn."""
    tokenizer: Tokenizer = request.getfixturevalue(request.param)
    return tokenizer


# ------------------------------------------------------------------ wordpiece


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("the cat", [104, 105]),
        ("The CATS", [104, 105, 106]),  # lower case, then "cat ##s"
        ("Café!", [107, 113]),  # the accent goes
        ("cafe\u0301", [107]),  # also when it is a combining mark
        ("unaffable", [108, 109, 110]),
        ("中国cat", [111, 112, 105]),  # every Chinese character is a word
        ("the中", [104, 111]),
        ("cat!cat", [105, 113, 105]),
        ("xylophone", [100]),
        ("cat" + "s" * 97, [105, *[106] * 97]),
        ("cat" + "s" * 98, [100]),  # words of over 100 characters are unknown
        ("\tthe \n cat ", [104, 105]),
        ("the\x00cat\u200d", [100]),  # control characters go without separating
    ],
)
def test_wordpiece_ids(bert: WordPieceTokenizer, text: str, ids: list[int]) -> None:
    """GLM-Base and GLM-Large would read other tokens than they were trained on."""
    assert bert.encode(text) == ids


def test_wordpiece_decoding_joins_words_with_spaces(bert: WordPieceTokenizer) -> None:
    """Filled blanks would come out as "cat ##s", or as one long word."""
    assert bert.decode([104, 105, 106, 113]) == "the cats !"
    assert bert.decode([111, 112]) == "中 国"
    assert bert.pieces()[104:107] == [" the", " cat", "s"]


def test_wordpiece_decoding_writes_command_tokens_as_words(bert: WordPieceTokenizer) -> None:
    """The official decoder writes "the [MASK] cat"; printed prompts would show "the[MASK] cat"."""
    assert bert.decode([104, 103, 105], special=True) == "the [MASK] cat"


# ------------------------------------------------------------------ byte-level BPE


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("the cat", [257, 261]),  # "the" " cat": no space is put in front
        (" the cat", [258, 261]),
        ("the  cat", [257, 220, 261]),  # of two spaces the second belongs to the word
        ("the cat ", [257, 261, 220]),
        ("the\ncat", [257, 198, 260]),
        ("the\n\ncat", [257, 198, 198, 260]),  # GPT-2's pattern parts the last line break
        ("cat\n\n", [260, 262]),
        ("don't", [67, 78, 77, 6, 83]),
        ("The", [51, 71, 68]),
        ("é", [127, 102]),  # bytes C3 A9
        ("cat7", [260, 22]),
        ("th", [256]),
    ],
)
def test_gpt2_ids(gpt2: BytePairTokenizer, text: str, ids: list[int]) -> None:
    """GLM-2B and GLM-10B would read other tokens than they were trained on."""
    assert gpt2.encode(text) == ids
    assert gpt2.decode(ids) == text


def test_roberta_ids_are_shifted_by_its_four_commands(roberta: BytePairTokenizer) -> None:
    """GLM-RoBERTa would be fed GPT-2's ids."""
    assert roberta.encode("the cat") == [261, 265]
    assert roberta.encode("the <mask> cat", special=True) == [261, 267, 265]
    assert roberta.special.sop_id == 268


def test_bytes_have_the_stand_ins_of_gpt2() -> None:
    """Every non-ASCII text would be decoded to other bytes."""
    stand_in = byte_characters()
    assert [stand_in[b] for b in (0, 10, 32, 33, 126, 127)] == list("ĀĊĠ!~ġ")
    assert [stand_in[b] for b in (160, 161, 172, 173, 174, 255)] == list("ł¡¬Ń®ÿ")
    assert len(set(stand_in.values())) == 256


def test_half_a_character_decodes_to_a_replacement_mark(gpt2: BytePairTokenizer) -> None:
    """A stream cut inside a character would raise instead of showing U+FFFD."""
    assert gpt2.decode([127]) == "\ufffd"
    assert gpt2.decode_bytes([127]) == b"\xc3"


# ------------------------------------------------------------------ Chinese sentencepiece


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("黄河", [7, 3, 4]),  # a dummy space comes first
        ("黄 河", [7, 3, 7, 4]),
        ("  黄  河 ", [7, 3, 7, 4]),
        ("黄山", [7, 3, 0]),
        ("入流", [7, 5, 6]),
    ],
)
def test_chinese_ids(chinese: ChineseTokenizer, text: str, ids: list[int]) -> None:
    """GLM-Large-Chinese and GLM-10B-Chinese would read other tokens than in training."""
    assert chinese.encode(text) == ids


def test_each_chinese_fragment_gets_its_own_dummy_space(chinese: ChineseTokenizer) -> None:
    """The text behind a blank would be tokenised otherwise than in the official code."""
    assert chinese.encode("黄 [MASK]河", special=True) == [7, 3, 11, 7, 4]
    assert chinese.decode([7, 3, 11, 7, 4]) == "黄河"
    assert chinese.decode([7, 3, 7, 4], special=True) == "黄 河"


def test_written_sentencepiece_controls_are_text(chinese: ChineseTokenizer) -> None:
    """A user who types `<s>` would inject sentencepiece's own control token."""
    assert not {1, 2} & set(chinese.encode("<s>黄</s>"))


def test_an_unused_id_below_the_command_tokens_decodes_to_nothing(
    chinese: ChineseTokenizer,
) -> None:
    """Id 50005 exists in the official tables; a model that picks it would crash the decoding."""
    assert chinese.special.sop_id == 8 + 6
    assert chinese.pieces()[8 + 5] == ""
    assert chinese.decode([7, 3, 8 + 5]) == "黄"


# ------------------------------------------------------------------ mini


def test_mini_keeps_line_breaks_and_spaces(mini: MiniTokenizer) -> None:
    """Poems and code would lose their lines, as with sentencepiece alone."""
    newline = mini.model.piece_to_id("\n")
    assert mini.encode("\n") == [newline]
    assert mini.encode("a\n\nb").count(newline) == 2
    assert mini.encode(" ") == [mini.model.piece_to_id("▁")]
    assert mini.decode(mini.encode("  def f():\n\treturn  ")) == "  def f():\n\treturn  "


def test_mini_spells_its_own_space_mark_as_bytes(mini: MiniTokenizer) -> None:
    """U+2581 in a text would come back as a space."""
    assert mini.encode("\u2581") == [mini.byte_ids[b] for b in (0xE2, 0x96, 0x81)]
    assert mini.encode("\0") == [mini.byte_ids[0]]
    assert mini.decode(mini.encode("a\u2581 b\0")) == "a\u2581 b\0"


def test_mini_pieces_say_what_each_id_contributes(mini: MiniTokenizer) -> None:
    """Sentence ends would be looked for in the wrong tokens when training data is packed."""
    pieces = mini.pieces()
    assert len(pieces) == mini.vocab_size == 400
    ids = mini.encode("the river\nflows")
    assert "".join(pieces[i] for i in ids) == "the river\nflows"
    assert all(pieces[i] == "" for i in mini.special.ids)


# ------------------------------------------------------------------ all kinds


def test_typed_command_tokens_are_text_unless_asked_for(any_kind: Tokenizer) -> None:
    """A user could end a prompt or forge a blank by typing `[MASK]` or `<|endoftext|>`."""
    for token in any_kind.special.tokens:
        if token.role != "unk":
            plain = any_kind.encode(f"cat {token.text} cat")
            assert token.id not in plain
        assert any_kind.encode(token.text, special=True).count(token.id) == 1


def test_only_the_allowed_command_tokens_are_recognised(any_kind: Tokenizer) -> None:
    """`fill` would let a typed end mark through together with the blanks."""
    mask, eop = any_kind.special.get("mask"), any_kind.special.get("eop")
    ids = any_kind.encode_with(f"cat{mask.text}{eop.text}", {mask.text})
    assert ids.count(mask.id) == 1
    assert eop.id not in ids
    assert any_kind.encode_with("cat", {mask.text}) == any_kind.encode("cat")


@pytest.mark.parametrize("kind", ["gpt2", "chinese"])
def test_blanks_eat_the_white_space_on_their_left_only(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The space before a blank would be a token of its own, the space behind it would be lost."""
    tokenizer: Tokenizer = request.getfixturevalue(kind)
    tail = tokenizer.encode(" cat")
    for text in ("[MASK]", "[gMASK]", "[sMASK]"):
        glued = tokenizer.encode(f"cat{text} cat", special=True)
        assert tokenizer.encode(f"cat \t\n {text} cat", special=True) == glued
        both = tokenizer.encode(f"{text} cat {text}", special=True)
        assert both == [glued[-1 - len(tail)], *tail, glued[-1 - len(tail)]]
    assert tokenizer.encode("cat [CLS]", special=True) == [
        *tokenizer.encode("cat "),
        tokenizer.special.cls_id,
    ]


def test_the_mini_blank_takes_the_space_before_it(mini: MiniTokenizer) -> None:
    """Words carry their space: a lone one before a blank is what training never has."""
    ids = mini.encode("the [MASK] sea", special=True)
    assert ids == [*mini.encode("the"), mini.special.mask_id, *mini.encode(" sea")]


def test_the_mini_blank_leaves_the_line_break_before_it(mini: MiniTokenizer) -> None:
    """A poem's next line would be written behind the last one."""
    ids = mini.encode("the\n[sMASK]", special=True)
    assert ids == [*mini.encode("the\n"), mini.special.smask_id]


@pytest.mark.parametrize("text", ["", " ", "\n", " \t\n\u3000"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "chinese"])
def test_blank_text_gives_no_tokens_in_official_kinds(
    kind: str, text: str, request: pytest.FixtureRequest
) -> None:
    """An empty prompt would differ from the official code by a stray space token."""
    assert request.getfixturevalue(kind).encode(text) == []
    assert request.getfixturevalue(kind).encode(text, special=True) == []


@pytest.mark.parametrize("text", ["", " ", "\n", " \t\n\u3000"])
def test_blank_text_round_trips_in_mini(mini: MiniTokenizer, text: str) -> None:
    """Lossless would not be lossless."""
    assert mini.decode(mini.encode(text)) == text


def test_white_space_beside_command_tokens_is_kept_in_gpt2(gpt2: BytePairTokenizer) -> None:
    """The official code drops only a text that is blank as a whole: other ids than it gives."""
    assert gpt2.encode("[SEP] [CLS]", special=True) == [268, 220, 266]
    assert gpt2.encode("the [MASK]\n", special=True) == [257, 267, 198]


def test_command_tokens_are_left_out_or_written_out(any_kind: Tokenizer) -> None:
    """Generated text would end in "<|endofpiece|>", or a debug print would hide the commands."""
    sop, eop = any_kind.special.get("sop"), any_kind.special.get("eop")
    text = "黄河" if any_kind.kind == "chinese" else "cat"
    ids = [sop.id, *any_kind.encode(text), eop.id]
    assert any_kind.decode(ids) == text
    written = any_kind.decode(ids, special=True)
    assert written.startswith(sop.text)
    assert written.endswith(eop.text)


def test_ids_outside_the_vocabulary_are_refused(any_kind: Tokenizer) -> None:
    """A wrong tokenizer beside the weights would show as an IndexError, or as wrong text."""
    assert any_kind.vocab_size == max(any_kind.special.ids) + 1
    for bad in (-1, any_kind.vocab_size):
        with pytest.raises(TokenizerError, match=f"id {bad} is outside the vocabulary of"):
            any_kind.decode([bad])


def test_a_lone_surrogate_is_refused_with_its_place(any_kind: Tokenizer) -> None:
    """Broken text from a browser would end in a UnicodeEncodeError deep inside a library."""
    with pytest.raises(TokenizerError, match=r"lone surrogate '\\ud800' at position 4"):
        any_kind.encode("cat \ud800")
    with pytest.raises(TokenizerError, match="lone surrogate"):
        any_kind.encode("\udfff[MASK]", special=True)
