"""Any text survives the lossless tokenizers, and no text turns into a command token."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from openglm.tokenizers import Tokenizer
from openglm.tokenizers.bpe import BytePairTokenizer
from openglm.tokenizers.mini import MiniTokenizer
from openglm.tokenizers.special import LAYOUTS

COMMANDS = sorted(
    {token.text for layout in LAYOUTS.values() for token in layout.resolve(100).tokens}
)

characters = st.characters(exclude_categories=["Cs"])
"""Every Unicode scalar value, unassigned and private ones included."""

awkward = st.sampled_from(
    [
        *("\u2581", "\u2581\u2581", "\0", "\n", "\r\n", "\t", " ", "  ", "\u00a0", "\u3000"),
        *("\u2028", "\u2029", "\x1c", "\x85", "\ufeff", "\ufffd", "\ufffe", "\u0301", "\u200d"),
        *("黄河", "。", "𠮷", "ＡＢ", "é", "e\u0301", "İ", "ß", "👩‍👩‍👧", "🇨🇳", "\U0010ffff"),
        *("<0x41>", "<0x0A>", "<unk>", "<s>", "</s>", "▅", "the river", " flows", "1234"),
        *COMMANDS,
    ]
)
"""What sentencepiece, byte-level BPE and command tokens are most likely to trip over."""

texts = st.one_of(
    st.text(characters, max_size=60),
    st.lists(awkward, max_size=12).map("".join),
    st.lists(st.one_of(awkward, st.text(characters, max_size=4)), max_size=12).map("".join),
    st.text("\u2581\0\n\t 黄a", max_size=30),
)


def assert_no_commands(tokenizer: Tokenizer, ids: list[int]) -> None:
    """No id is a command token."""
    assert not tokenizer.special.ids & set(ids)


@settings(max_examples=300)
@given(text=texts)
@example(text=" \u2581 \u2581")
@example(text="\0\n\u2581\n\0")
@example(text="a" * 5000 + "\u2581" + " " * 5000)
def test_mini_returns_every_text_unchanged(mini: MiniTokenizer, text: str) -> None:
    """Training and serving would alter users' text: lost spaces, lines or rare characters."""
    ids = mini.encode(text)
    assert mini.decode(ids) == text
    assert_no_commands(mini, ids)


@settings(max_examples=200)
@given(text=texts)
def test_byte_level_bpe_returns_every_text_unchanged(
    trained_gpt2: BytePairTokenizer, text: str
) -> None:
    """GLM-2B and GLM-10B would answer with altered text; a blank text alone gives no tokens."""
    ids = trained_gpt2.encode(text)
    assert trained_gpt2.decode(ids) == (text if text.strip() else "")
    assert_no_commands(trained_gpt2, ids)


@settings(max_examples=100)
@given(text=texts)
def test_no_text_becomes_a_command_in_the_lossy_kinds(
    bert: Tokenizer, roberta: Tokenizer, chinese: Tokenizer, text: str
) -> None:
    """A user could end a prompt or forge a blank; only BERT's [UNK] stands for unknown words."""
    assert_no_commands(roberta, roberta.encode(text))
    assert_no_commands(chinese, chinese.encode(text))
    unknown = bert.special.get("unk").id
    assert_no_commands(bert, [i for i in bert.encode(text) if i != unknown])


@settings(max_examples=200)
@given(parts=st.lists(st.one_of(texts, st.sampled_from(COMMANDS)), max_size=6))
def test_mini_splits_a_text_at_its_command_tokens_and_nowhere_else(
    mini: MiniTokenizer, parts: list[str]
) -> None:
    """A prompt with blanks would lose or change the text between them."""
    text = "".join(parts)
    assert mini.decode(mini.encode(text, special=True), special=True) == text


@settings(max_examples=200)
@given(text=texts, cut=st.integers(min_value=0, max_value=80))
def test_the_bytes_of_two_halves_are_the_bytes_of_the_whole(
    mini: MiniTokenizer, text: str, cut: int
) -> None:
    """Streamed pieces put together would differ from the answer given at once."""
    ids = mini.encode(text)
    whole = mini.decode_bytes(ids[:cut]) + mini.decode_bytes(ids[cut:])
    assert whole == text.encode("utf-8")
