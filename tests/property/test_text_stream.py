"""Streamed pieces are the decoded whole, for every tokenizer and any tokens, in linear time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers_data import BPE_MERGES, RANKED, byte_alphabet, write_bpe, write_ranks
from openglm.engine.text_stream import GrowingText, TextStream, first_stop
from openglm.tokenizers import Tokenizer, open_tokenizer

TEXTS = (
    *(" the cat", "cat", "cats", "黄河入海流。", "\u2581", " ", "  ", "    ", "\n", "\t", "a < b"),
    *("<n>", "<", "n", ">", "<|tab|>", "<|", "tab|>", "<|blank_12|>", "blank_", "1", "|>"),
    *("é", "𠮷", "👩‍👩‍👧", "ༀ", "\ufffd", "x . y", " n't", " ' ", " 's", "!", "?,", "<0x41>"),
)
"""What some tokenizer spells in several tokens, rewrites, or drops where a text begins."""
OFFICIAL = {
    "chatglm": "chatglm6b_ice_text.model",
    "chatglm-icetk": "ice_text_v0_icetk.model",
    "chatglm2": "chatglm2_chatglm3_tokenizer.model",
    "chatglm3": "chatglm2_chatglm3_tokenizer.model",
    "codegeex2": "codegeex2_tokenizer.model",
}
OURS = ("bert", "gpt2", "roberta", "trained_gpt2", "chinese", "mini")
WRITTEN = ("glm4", "codegeex", "codegeex cleaned up")


@pytest.fixture(scope="module", params=[*OURS, *WRITTEN, *OFFICIAL])
def tokenizer(request, tmp_path_factory) -> Tokenizer:
    """One of each kind; those of official files where these are."""
    name = request.param
    if name in OURS:
        return request.getfixturevalue(name)
    if name in OFFICIAL:
        folder = request.getfixturevalue("official_tokenizers")
        return open_tokenizer(name, folder / OFFICIAL[name])
    folder = tmp_path_factory.mktemp("vocabulary")
    if name == "glm4":
        return open_tokenizer(name, write_ranks(folder, RANKED))
    tokens = [*byte_alphabet(), *("".join(pair) for pair in BPE_MERGES), "<|endoftext|>"]
    found = open_tokenizer("codegeex", write_bpe(folder, tokens))
    found.clean_up_spaces = name.endswith("cleaned up")
    return found


@pytest.fixture(scope="module")
def bits(tokenizer) -> list[list[int]]:
    """Runs of tokens to put together: of awkward texts, and each command token."""
    texts = (tokenizer.encode(text) for text in TEXTS)
    return [*filter(None, texts), *([i] for i in sorted(tokenizer.command_texts))]


@st.composite
def any_ids(draw, tokenizer: Tokenizer, bits: list[list[int]]) -> list[int]:
    """Tokens in any order: parts of texts, torn ones too, and any others."""
    one = st.integers(0, tokenizer.vocab_size - 1).map(lambda i: [i])
    torn = st.sampled_from(bits).flatmap(lambda run: st.sampled_from([run[:1], run[-1:], run]))
    return [i for run in draw(st.lists(st.one_of(torn, one), max_size=16)) for i in run]


def streamed(stream: TextStream, ids: list[int]) -> Iterator[str]:
    """The pieces."""
    for token in ids:
        yield stream.push(token)
        if stream.is_stopped:
            return
    yield stream.finish()


@settings(max_examples=80)
@given(data=st.data(), special=st.booleans())
def test_pieces_are_the_whole(tokenizer, bits, data, special):
    """A streamed answer has other spaces, lines or characters than the one given at once."""
    ids = data.draw(any_ids(tokenizer, bits))
    whole = tokenizer.decode(ids, special=special)
    stream = TextStream(tokenizer, special=special)
    pieces = "".join(streamed(stream, ids))
    assert stream.text == whole
    assert special or pieces == whole
    growing = GrowingText(tokenizer, special)
    for number, token in enumerate(ids, start=1):
        growing.push(token)
        assert growing.whole == tokenizer.decode(ids[:number], special=special)
        assert whole.startswith(growing.whole[: growing.num_certain])


@settings(max_examples=80)
@given(data=st.data(), special=st.booleans())
def test_pieces_up_to_a_stop_string_are_the_whole_up_to_it(tokenizer, bits, data, special):
    """A stop string is found elsewhere in a stream than in the answer given at once."""
    ids = data.draw(any_ids(tokenizer, bits))
    whole = tokenizer.decode(ids, special=special)
    starts = st.integers(0, max(0, len(whole) - 1))
    drawn = data.draw(st.lists(st.tuples(starts, st.integers(1, 4)), min_size=1, max_size=3))
    stop = [whole[start : start + size] or "a" for start, size in drawn]
    stream = TextStream(tokenizer, stop, special=special)
    place = first_stop(whole, stop)
    pieces = "".join(streamed(stream, ids))
    assert stream.text == whole[:place]
    assert special or pieces == stream.text
    assert stream.is_stopped == (place is not None)


@settings(max_examples=80)
@given(data=st.data())
def test_pieces_have_no_command_tokens(tokenizer, bits, data):
    """A user reads `<|assistant|>`, or text beside it is lost."""
    if tokenizer.kind in ("bert", "codegeex"):
        pytest.skip("decodes across command tokens: a space beside one comes or goes")
    whole = [run for run in bits if "\ufffd" not in tokenizer.decode(run)]
    ids = [i for run in data.draw(st.lists(st.sampled_from(whole), max_size=12)) for i in run]
    stream = TextStream(tokenizer, ["<|zzz", "zzz"], special=True)
    assert "".join(streamed(stream, ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", ["The cat sat. 黄河入海流。\n", "ༀ𠮷", "1 < 2 . "])
def test_a_long_answer_is_not_decoded_again_for_each_token(tokenizer, text, monkeypatch):
    """A stream becomes slower with each token; after some thousands it is slower than a model."""
    ids = [i for i in tokenizer.encode(text * 400)[:1000] if i not in tokenizer.command_texts]
    decoded = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda ids, special=False: decoded.append(len(ids)) or decode(ids)
    )
    for _ in streamed(TextStream(tokenizer), ids):
        pass
    assert sum(decoded) <= 30 * len(ids)  # characters of four tokens, held back and overlapping
