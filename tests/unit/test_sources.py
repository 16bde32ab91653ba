"""Sources of text: documents, held-out rows, and what is said about broken files."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from openglm.data.sources import Row, SourceConfig, read_rows
from openglm.errors import ConfigError, DataError
from openglm.tokenizers import Tokenizer
from openglm.train.config import RunConfig, load_run_config
from openglm.train.corpus import prepare_corpus

ROWS = [{"en": f"House {n}.", "zh": f"房子{n}。"} for n in range(400)]
PAIR = ["{en} = {zh}", "{zh} = {en}"]


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(
    folder: Path, name: str, content: bytes, holdout: float = 0.0, **options: Any
) -> list[Row]:
    (folder / name).write_bytes(content)
    return list(read_rows(SourceConfig(name="tales", path=name, **options), folder, holdout))


def documents(rows: list[Row]) -> list[str]:
    return [text for row in rows for text in row.documents]


# ------------------------------------------------------------------ what is read


def test_plain_text_is_split_at_blank_lines(tmp_path: Path) -> None:
    """A book would be one document, or lose the line breaks of its poems."""
    content = "\n\n one\n  two\n\n \t\nthree\r\n\r\nfour\u2028five".encode()
    assert documents(read(tmp_path, "tales.txt", content)) == [
        " one\n  two",
        "three",
        "four\u2028five",
    ]


@pytest.mark.parametrize(
    ("suffix", "pack"), [("", bytes), (".xz", lzma.compress), (".gz", gzip.compress)]
)
@pytest.mark.parametrize(
    ("name", "content"),
    [("t.txt", "一\n\ntwo\n".encode()), ("t.v2.jsonl", b'{"text": "\\u4e00"}\n\n{"text": "two"}')],
)
def test_compressed_files_are_read_like_plain_ones(
    name: str, content: bytes, suffix: str, pack: Any, tmp_path: Path
) -> None:
    """A corpus would have to be unpacked first, or would be read as another format."""
    assert documents(read(tmp_path, name + suffix, pack(content))) == ["一", "two"]


def test_templates_make_documents_of_fields(tmp_path: Path) -> None:
    """Translation pairs would be trained in one direction only, or with braces in them."""
    rows = read(tmp_path, "p.jsonl", lines([{"en": "a {zh}", "zh": "甲", "n": 3}]), templates=PAIR)
    assert documents(rows) == ["a {zh} = 甲", "甲 = a {zh}"]
    assert documents(read(tmp_path, "p.jsonl", b'{"n": 3}', templates=["no. {n}"])) == ["no. 3"]


def test_blank_documents_are_left_out(tmp_path: Path) -> None:
    """Empty texts would fill training sequences."""
    assert documents(read(tmp_path, "t.jsonl", lines([{"text": " \n"}, {"text": "a"}]))) == ["a"]


# ------------------------------------------------------------------ held-out rows


def test_documents_of_one_row_fall_on_one_side(tmp_path: Path) -> None:
    """A held-out translation would be trained on in the other direction."""
    rows = read(tmp_path, "p.jsonl", lines(ROWS), holdout=0.25, templates=PAIR)
    assert all(len(row.documents) == 2 for row in rows)
    # 400 draws: the standard deviation is 0.022.
    assert sum(row.held_out for row in rows) / 400 == pytest.approx(0.25, abs=0.08)


def test_the_split_depends_on_content_alone(tmp_path: Path) -> None:
    """Adding a line or a template would move held-out text into training."""
    first = read(tmp_path, "p.jsonl", lines(ROWS), holdout=0.25, templates=PAIR)
    turned = [dict(reversed(row.items())) for row in reversed(ROWS)]
    other = read(tmp_path, "q.jsonl", lines(turned), holdout=0.25, templates=["{en}"])
    sides = {row.documents[0].split(" = ")[0]: row.held_out for row in first}
    assert {row.documents[0]: row.held_out for row in other} == sides


@pytest.mark.parametrize("holdout", [0.0, 0.1])
def test_a_larger_share_holds_out_the_same_rows_and_more(holdout: float, tmp_path: Path) -> None:
    """Holdout 0 would lose text, or a change of the share would reshuffle the split."""
    few = read(tmp_path, "p.jsonl", lines(ROWS), holdout=holdout, templates=PAIR)
    more = read(tmp_path, "p.jsonl", lines(ROWS), holdout=0.5, templates=PAIR)
    assert all(b.held_out for a, b in zip(few, more, strict=True) if a.held_out)
    assert any(row.held_out for row in few) is (holdout > 0)


RUN = """
model = {vocab_size = 400, hidden_size = 32, num_layers = 1, num_attention_heads = 2, \
intermediate_size = 64, max_position_embeddings = 64}
tokenizer = {kind = "mini", path = "tokenizer.model"}
train = {steps = 1, sequence_length = 64}
data = {holdout = 0.25, sources = [{name = "pairs", path = "p.jsonl", \
templates = ["{en} = {zh}", "{zh} = {en}"]}]}
"""


def corpus_config(folder: Path) -> RunConfig:
    (folder / "run.toml").write_text(RUN)
    return load_run_config(folder / "run.toml")


def test_stores_keep_held_out_rows_apart(tmp_path: Path, mini: Tokenizer) -> None:
    """Validation loss would be measured on text that was trained on."""
    (tmp_path / "p.jsonl").write_bytes(lines(ROWS))
    corpus = prepare_corpus(corpus_config(tmp_path), mini, tmp_path / "cache")
    sides = []
    for (store,) in (corpus.train, corpus.validation):
        texts = [mini.decode(store[index]) for index in range(len(store))]
        sides.append({min(text.split(" = ")) for text in texts})
        assert len(texts) == 2 * len(sides[-1])
    assert not sides[0] & sides[1]
    assert len(sides[0] | sides[1]) == 400


def test_changed_text_is_tokenised_again(tmp_path: Path, mini: Tokenizer) -> None:
    """A corrected corpus would be ignored in favour of the cached one, or nothing ever cached."""
    config, cache, reports = corpus_config(tmp_path), tmp_path / "cache", []
    for count in (400, 400, 399):
        (tmp_path / "p.jsonl").write_bytes(lines(ROWS[:count]))
        corpus = prepare_corpus(config, mini, cache, reports.append)
        assert len(corpus.train[0]) + len(corpus.validation[0]) == 2 * count
    assert reports == ["pairs", "pairs"]


# ------------------------------------------------------------------ what is refused


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The user would not know which of twenty sources has a wrong path."""
    config = SourceConfig(name="tales", path="none.txt")
    with pytest.raises(DataError, match=r"source 'tales': there is no file .*none\.txt"):
        list(read_rows(config, tmp_path, 0.0))


def test_a_missing_field_is_named_with_a_near_one(tmp_path: Path) -> None:
    """A slip in a template would end in a KeyError, or train on the template itself."""
    with pytest.raises(DataError, match=r"p\.jsonl, entry 1 has no field 'eng'") as caught:
        read(tmp_path, "p.jsonl", lines(ROWS[:1]), templates=["{eng}"])
    assert caught.value.hint.startswith("did you mean 'en'")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', "line 3 is not JSON"),
        (b"[1]", "line 3 is not a JSON object"),
        (b'"text"', "line 3 is not a JSON object"),
        (b'{"text": ' + b"1" * 5000 + b"}", "line 3 is not JSON"),  # Python refuses to read it
        (b"[" * 100_000, "line 3 is not JSON"),  # too deep for the parser
    ],
)
def test_broken_json_is_reported_with_its_line(line: bytes, message: str, tmp_path: Path) -> None:
    """One bad line among millions could not be found."""
    with pytest.raises(DataError, match=rf"t\.jsonl, {message}"):
        read(tmp_path, "t.jsonl", b'{"text": "a"}\n\n' + line + b"\n")


def test_a_null_field_is_not_text(tmp_path: Path) -> None:
    """The model would be trained on the word "None"."""
    with pytest.raises(DataError, match=r"t\.jsonl, entry 1 .*'text'"):
        read(tmp_path, "t.jsonl", b'{"text": null}\n')


def test_a_lone_surrogate_is_reported_with_its_entry(tmp_path: Path) -> None:
    """A half emoji, common in scraped text, would stop tokenisation without saying where it is."""
    with pytest.raises(DataError, match=r"t\.jsonl, entry 2 .*surrogate"):
        read(tmp_path, "t.jsonl", b'{"text": "a"}\n{"text": "b \\ud83d"}\n')


GZIP = gzip.compress(lines(ROWS), mtime=0)
XZ = lzma.compress(lines(ROWS))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.jsonl", b'{"text": "caf\xe9"}\n'),
        ("t.txt", "黄河".encode("gbk")),
        ("t.txt.gz", gzip.compress("黄河".encode("gbk"), mtime=0)),
        ("t.jsonl.xz", XZ[: len(XZ) // 2]),
        ("t.jsonl.xz", XZ[:-1]),
        ("t.jsonl.xz", XZ[:40] + b"\xff" + XZ[41:]),
        ("t.jsonl.xz", b"version https://git-lfs.github.com/spec/v1\n"),
        ("t.jsonl.gz", GZIP[: len(GZIP) // 2]),
        ("t.jsonl.gz", GZIP[:10] + b"\xff" + GZIP[11:]),
        ("t.jsonl.gz", GZIP[:-8] + bytes(8)),
        ("t.jsonl.gz", b"plain text"),
    ],
)
def test_damaged_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    """An interrupted download would end in a traceback, or pass as a shorter corpus."""
    with pytest.raises(DataError, match=f"{name} cannot be read"):
        read(tmp_path, name, content, templates=["{en}"] if "json" in name else ["{text}"])


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_positive(weight: float) -> None:
    """A source would never be seen, or make all probabilities NaN."""
    with pytest.raises((DataError, ConfigError), match="'tales' has weight="):
        SourceConfig(name="tales", path="t.txt", weight=weight)


def test_a_source_needs_a_template() -> None:
    """A source would silently give no documents."""
    with pytest.raises((DataError, ConfigError), match="'tales' has no templates"):
        SourceConfig(name="tales", path="t.txt", templates=[])
