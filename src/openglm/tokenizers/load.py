"""Opening a tokenizer by kind, or finding the one in a checkpoint folder by its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from openglm.errors import TokenizerError
from openglm.tokenizers import bpe, chinese, mini, wordpiece
from openglm.tokenizers.base import Tokenizer
from openglm.tokenizers.special import LAYOUTS, layout

CONFIG_FILE = "tokenizer_config.json"

OPENERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bert": lambda path: wordpiece.WordPieceTokenizer(_file(path, wordpiece.VOCAB_FILE)),
    "gpt2": lambda path: bpe.BytePairTokenizer(path, "gpt2"),
    "roberta": lambda path: bpe.BytePairTokenizer(path, "roberta"),
    "chinese": lambda path: chinese.ChineseTokenizer(_file(path, chinese.MODEL_FILE)),
    "chinese-unfixed": lambda path: chinese.ChineseTokenizer(
        _file(path, chinese.MODEL_FILE), "chinese-unfixed"
    ),
    "mini": lambda path: mini.MiniTokenizer(_file(path, mini.MODEL_FILE)),
}

OFFICIAL_CLASSES = {
    "GLMBertTokenizer": "bert",
    "GLMGPT2Tokenizer": "gpt2",
    "GLMRobertaTokenizer": "roberta",
    "GLMChineseTokenizer": "chinese",
}
"""`tokenizer_class` of the Hugging Face files. Their Chinese class has the fixed ids throughout."""


def open_tokenizer(kind: str, path: Path) -> Tokenizer:
    """Opens a tokenizer of a known kind from its file or folder.

    Raises:
        TokenizerError: unknown kind, or files missing or damaged.
    """
    layout(kind)
    return OPENERS[kind](path)


def find_tokenizer(folder: Path) -> Tokenizer | None:
    """Opens the tokenizer that a folder holds; None if it holds no vocabulary at all.

    The kind comes from `tokenizer_config.json` (its official class, or our `kind`), else from
    which files there are.

    Raises:
        TokenizerError: a vocabulary that is damaged or of a class not known here.
    """
    kind = _declared_kind(folder) or _kind_by_files(folder)
    return None if kind is None else open_tokenizer(kind, folder)


def _declared_kind(folder: Path) -> str | None:
    path = folder / CONFIG_FILE
    if not path.is_file():
        return None
    try:
        declared = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(declared, dict):
        raise TokenizerError(f"{path} is not a JSON object")
    if "kind" in declared:
        layout(declared["kind"])
        return str(declared["kind"])
    if declared.get("tokenizer_class") is None:
        return None
    name = str(declared["tokenizer_class"])
    if name not in OFFICIAL_CLASSES:
        raise TokenizerError(
            f"{path} names the tokenizer class {name!r}",
            hint=f"known: {', '.join(OFFICIAL_CLASSES)}",
        )
    return OFFICIAL_CLASSES[name]


def _kind_by_files(folder: Path) -> str | None:
    if (folder / mini.MODEL_FILE).is_file():
        return "mini"
    if (folder / chinese.MODEL_FILE).is_file():
        return "chinese"
    if (folder / wordpiece.VOCAB_FILE).is_file():
        return "bert"
    if (folder / bpe.VOCAB_FILE).is_file() and (folder / bpe.MERGES_FILE).is_file():
        vocabulary = bpe.read_vocabulary(folder / bpe.VOCAB_FILE)
        return "roberta" if vocabulary.get("<s>") == 0 else "gpt2"
    return None


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


assert set(OPENERS) == set(LAYOUTS)
