"""Finding the tokenizer of a folder, and saying what is wrong with damaged vocabulary files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from helpers_data import WORDPIECES, write_wordpiece
from openglm.errors import TokenizerError
from openglm.tokenizers import Tokenizer, find_tokenizer, open_tokenizer
from openglm.tokenizers.bpe import BytePairTokenizer
from openglm.tokenizers.mini import MiniTokenizer
from openglm.tokenizers.sentencepiece_model import read_model
from openglm.tokenizers.wordpiece import WordPieceTokenizer

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


def copy_of(tokenizer: Tokenizer, folder: Path, **config: object) -> Path:
    """A folder with the vocabulary files of `tokenizer` and a tokenizer_config.json."""
    for name, path in tokenizer.files().items():
        shutil.copy(path, folder / name)
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("fixture", "name", "kind"),
    [
        ("bert", "GLMBertTokenizer", "bert"),
        ("gpt2", "GLMGPT2Tokenizer", "gpt2"),
        ("roberta", "GLMRobertaTokenizer", "roberta"),
        ("chinese", "GLMChineseTokenizer", "chinese"),
    ],
)
def test_the_official_class_decides(
    fixture: str, name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An official folder would be read with the command ids of another model."""
    tokenizer = request.getfixturevalue(fixture)
    found = find_tokenizer(copy_of(tokenizer, tmp_path, tokenizer_class=name))
    assert found is not None
    assert found.kind == kind
    assert found.special == tokenizer.special
    assert found.encode("cat the 黄") == tokenizer.encode("cat the 黄")


def test_our_kind_decides_before_the_class(chinese: Tokenizer, tmp_path: Path) -> None:
    """GLM-10B-Chinese saved by us would come back with the other ids for its long blank."""
    folder = copy_of(
        chinese, tmp_path, kind="chinese-unfixed", tokenizer_class="GLMChineseTokenizer"
    )
    found = find_tokenizer(folder)
    assert found is not None
    assert found.kind == "chinese-unfixed"
    assert found.special.gmask_id == found.special.eop_id


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "chinese", "mini"])
def test_without_a_config_the_files_decide(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Original vocabulary files put beside Megatron weights would not be recognised."""
    found = find_tokenizer(copy_of(request.getfixturevalue(kind), tmp_path))
    assert found is not None
    assert found.kind == kind
    assert sorted(found.files()) == sorted(path.name for path in tmp_path.iterdir())


def test_a_config_that_names_no_class_leaves_it_to_the_files(
    bert: Tokenizer, tmp_path: Path
) -> None:
    """The stock BERT and GPT-2 files have such a config; they would be refused as class 'None'."""
    found = find_tokenizer(copy_of(bert, tmp_path, do_lower_case=True, model_max_length=512))
    assert found is not None
    assert found.kind == "bert"


def test_a_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    """Weights without a tokenizer, which are still useful, would not load."""
    (tmp_path / "config.json").write_text("{}")
    assert find_tokenizer(tmp_path) is None


def test_an_unknown_class_is_refused_with_the_known_ones(bert: Tokenizer, tmp_path: Path) -> None:
    """Another model's vocabulary would be used with GLM's command ids."""
    folder = copy_of(bert, tmp_path, tokenizer_class="LlamaTokenizer")
    with pytest.raises(
        TokenizerError, match=r"names the tokenizer class 'LlamaTokenizer'"
    ) as caught:
        find_tokenizer(folder)
    assert "GLMBertTokenizer, GLMGPT2Tokenizer" in caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"kind": "minni"}', "unknown tokenizer kind 'minni'"),
        (b'{"kind": ["mini"]}', "unknown tokenizer kind"),
        (b'{"kind"', "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "tokenizer_config.json"),
        (b"3", "tokenizer_config.json"),
        (b"null", "tokenizer_config.json"),
    ],
)
def test_a_damaged_tokenizer_config_is_a_tokenizer_error(
    content: bytes, message: str, bert: Tokenizer, tmp_path: Path
) -> None:
    """Loading a model would end in a TypeError that does not name the file."""
    copy_of(bert, tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("bert", "vocab.txt"),
        ("gpt2", "vocab.json"),
        ("roberta", "vocab.json"),
        ("chinese", "cog-pretrain.model"),
        ("mini", "tokenizer.model"),
    ],
)
def test_a_missing_file_is_named(kind: str, name: str, tmp_path: Path) -> None:
    """The user would not know which file to put where."""
    with pytest.raises(TokenizerError, match=f"there is no tokenizer file .*{name}"):
        open_tokenizer(kind, tmp_path)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "chinese", "mini"])
def test_git_lfs_pointers_are_refused(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A clone made without git-lfs would load, or fail without saying what to fetch."""
    folder = copy_of(request.getfixturevalue(kind), tmp_path)
    for path in folder.iterdir():
        content = path.read_bytes()
        path.write_bytes(LFS_POINTER)
        with pytest.raises(TokenizerError, match=r"git-lfs|Git LFS|damaged"):
            open_tokenizer(kind, folder)
        path.write_bytes(content)


def test_a_sentencepiece_file_cut_anywhere_is_refused(chinese_file: Path, tmp_path: Path) -> None:
    """An interrupted download would load with fewer pieces, and so with other command ids."""
    content = chinese_file.read_bytes()
    cut = tmp_path / "cog-pretrain.model"
    loaded, messages = [], set()
    for length in range(len(content)):
        cut.write_bytes(content[:length])
        try:
            read_model(cut)
        except TokenizerError as error:
            messages.add(error.message.replace(f"({length} bytes)", "(n bytes)"))
        else:
            loaded.append(length)
    assert loaded == []
    assert messages == {f"{cut} (n bytes) is not a complete sentencepiece model"}


def test_a_cut_official_sentencepiece_file_is_refused(
    official_tokenizers: Path, tmp_path: Path
) -> None:
    """An interrupted download of a real vocabulary would load with fewer pieces."""
    content = (official_tokenizers / "chatglm2_chatglm3_tokenizer.model").read_bytes()
    cut = tmp_path / "cut.model"
    for length in (0, 1000, len(content) // 2, len(content) - 1):
        cut.write_bytes(content[:length])
        with pytest.raises(TokenizerError, match="not a complete sentencepiece model"):
            read_model(cut)


def test_a_foreign_sentencepiece_model_is_not_mini(chinese_file: Path) -> None:
    """A vocabulary without byte fallback would lose characters silently."""
    with pytest.raises(TokenizerError, match="has no byte fallback"):
        MiniTokenizer(chinese_file)


def test_a_foreign_wordpiece_vocabulary_is_refused(tmp_path: Path) -> None:
    """A cased or Chinese BERT vocabulary would be used with the uncased command ids."""
    tokens = list(WORDPIECES)
    tokens[103] = "of"
    path = write_wordpiece(tmp_path, tuple(tokens))
    with pytest.raises(TokenizerError, match=r"line 104 is 'of', not '\[MASK\]'"):
        WordPieceTokenizer(path)


@pytest.mark.parametrize("length", [0, 2, 100, 101, 103])
def test_a_cut_wordpiece_vocabulary_is_refused(length: int, tmp_path: Path) -> None:
    """An interrupted download would give one id to a word and to a command token."""
    path = write_wordpiece(tmp_path, WORDPIECES[:length])
    with pytest.raises(TokenizerError, match=r"vocab\.txt"):
        WordPieceTokenizer(path)


def test_a_wordpiece_vocabulary_in_another_encoding_is_refused(tmp_path: Path) -> None:
    """A damaged vocab.txt would end in a UnicodeDecodeError that does not name it."""
    path = write_wordpiece(tmp_path, WORDPIECES)
    path.write_bytes(path.read_bytes() + b"caf\xe9\n")
    with pytest.raises(TokenizerError, match=r"vocab\.txt"):
        WordPieceTokenizer(path)


def test_only_line_feeds_separate_wordpieces(tmp_path: Path) -> None:
    """One vocabulary entry with an exotic line separator would shift every id behind it."""
    path = write_wordpiece(tmp_path, (*WORDPIECES, "a\u2028b", "dog"))
    tokenizer = WordPieceTokenizer(path)
    assert tokenizer.encode("dog") == [len(WORDPIECES) + 1]


@pytest.mark.parametrize("content", [b'{"a": 0', b"[]", b"{}", b'{"a": "b"}', b"\xff"])
def test_a_damaged_bpe_vocabulary_is_refused(content: bytes, tmp_path: Path) -> None:
    """Loading a model would end in a traceback of the JSON or tokenizers library."""
    (tmp_path / "vocab.json").write_bytes(content)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(TokenizerError, match="damaged BPE files"):
        BytePairTokenizer(tmp_path, "gpt2")
    with pytest.raises(TokenizerError, match="damaged BPE files"):
        find_tokenizer(tmp_path)


def test_a_bpe_vocabulary_of_the_other_kind_is_refused(gpt2: Tokenizer, roberta: Tokenizer) -> None:
    """GPT-2 files declared as RoBERTa's would give ids that mean something else."""
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        open_tokenizer("roberta", next(iter(gpt2.files().values())).parent)
    with pytest.raises(TokenizerError, match=r"vocab\.json"):
        open_tokenizer("gpt2", next(iter(roberta.files().values())).parent)
