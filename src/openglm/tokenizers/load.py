"""Opening a tokenizer by kind, or finding the one in a checkpoint folder by its files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from openglm.errors import TokenizerError, UnknownTokenizerError
from openglm.tokenizers import bpe, chatglm, chatglm2, chinese, codegeex, glm4, mini, wordpiece
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
    "chatglm": lambda path: chatglm.ChatGLMTokenizer(_file(path, chatglm.MODEL_FILE)),
    "chatglm-icetk": lambda path: chatglm.ChatGLMTokenizer(
        _file(path, chatglm.MODEL_FILE), "chatglm-icetk"
    ),
    "icetk": lambda path: chatglm.ChatGLMTokenizer(_file(path, chatglm.MODEL_FILE), "icetk"),
    "chatglm2": lambda path: chatglm2.ChatGLM2Tokenizer(
        _file(path, chatglm2.MODEL_FILE), "chatglm2"
    ),
    "chatglm3": lambda path: chatglm2.ChatGLM2Tokenizer(
        _file(path, chatglm2.MODEL_FILE), "chatglm3"
    ),
    "codegeex2": lambda path: chatglm2.ChatGLM2Tokenizer(
        _file(path, chatglm2.MODEL_FILE), "codegeex2"
    ),
    "glm4": lambda path: glm4.GLM4Tokenizer(_glm4_file(path)),
    "codegeex": lambda path: codegeex.CodeGeeXTokenizer(path),
    "mini": lambda path: mini.MiniTokenizer(_file(path, mini.MODEL_FILE)),
}

SEVERAL = "several"
"""The official class name is shared by different tokenizers, which their files tell apart."""
OFFICIAL_CLASSES = {
    "GLMBertTokenizer": "bert",
    "GLMGPT2Tokenizer": "gpt2",
    "GLMRobertaTokenizer": "roberta",
    "GLMChineseTokenizer": "chinese",
    "ChatGLMTokenizer": SEVERAL,
    "ChatGLM4Tokenizer": "glm4",
    "GPT2Tokenizer": SEVERAL,
    "PreTrainedTokenizerFast": SEVERAL,
}
"""`tokenizer_class` of the Hugging Face files. Their Chinese class has the fixed ids throughout."""


CHATGLM3_KEYS = {"classifier_dropout", "rope_ratio"}
"""Keys of `config.json` that ChatGLM2, which has the same tokenizer file, does not have."""


def open_tokenizer(kind: str, path: Path) -> Tokenizer:
    """Opens a tokenizer of a known kind from its file or folder.

    Raises:
        TokenizerError: unknown kind, or files missing or damaged.
    """
    layout(kind)
    return OPENERS[kind](path)


def require_tokenizer(folder: Path, model_folder: Path) -> Tokenizer:
    """The tokenizer of a folder that was named for it; `TokenizerError` if there is none.

    Args:
        folder: of the vocabulary.
        model_folder: whose `config.json` tells models apart that share a vocabulary.
    """
    found = find_tokenizer(folder, model_folder)
    if found is None:
        raise TokenizerError(
            f"{folder} has no tokenizer files known here",
            hint="name the folder with tokenizer.model, ice_text.model, vocab.txt or vocab.json",
        )
    return found


def find_tokenizer(folder: Path, model_folder: Path | None = None) -> Tokenizer | None:
    """Opens the tokenizer that a folder, or the folder of a file, holds; None if there is none.

    With `model_folder`, `config.json` is read there instead.

    The kind comes from `tokenizer_config.json` (its official class, or our `kind`), else from
    which files there are.

    Raises:
        TokenizerError: a vocabulary that is damaged or of a class not known here.
    """
    folder = folder if folder.is_dir() else folder.parent
    kind = _declared_kind(folder)
    if kind is None or kind == SEVERAL:
        kind = _kind_by_files(folder, _model_config(model_folder or folder))
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
        raise UnknownTokenizerError(
            f"{path} names the tokenizer class {name!r}",
            hint=f"known: {', '.join(OFFICIAL_CLASSES)}",
        )
    return OFFICIAL_CLASSES[name]


def _kind_by_files(folder: Path, config: dict[str, Any]) -> str | None:
    if (folder / chatglm.MODEL_FILE).is_file():
        if not chatglm.is_older_file(folder / chatglm.MODEL_FILE):
            return "chatglm"
        is_chat = config.get("model_type") == "chatglm"
        return "chatglm-icetk" if is_chat else "icetk"
    if (folder / chatglm2.MODEL_FILE).is_file():
        if glm4.is_rank_file(folder / chatglm2.MODEL_FILE):
            return "glm4"
        official = chatglm2.official_kind(folder / chatglm2.MODEL_FILE)
        is_third = official == "chatglm2" and config.keys() & CHATGLM3_KEYS
        return "chatglm3" if is_third else official or "mini"
    if (folder / glm4.JSON_FILE).is_file() and glm4.is_json_file(folder / glm4.JSON_FILE):
        return "glm4"
    if (folder / chinese.MODEL_FILE).is_file():
        return "chinese"
    if (folder / wordpiece.VOCAB_FILE).is_file():
        return "bert"
    if (folder / bpe.VOCAB_FILE).is_file() and (folder / bpe.MERGES_FILE).is_file():
        if codegeex.is_folder(folder):
            return "codegeex"
        vocabulary = bpe.read_vocabulary(folder / bpe.VOCAB_FILE)
        return "roberta" if vocabulary.get("<s>") == 0 else "gpt2"
    return None


def _glm4_file(path: Path) -> Path:
    is_json = path.is_dir() and not (path / glm4.MODEL_FILE).is_file()
    return _file(path, glm4.JSON_FILE if is_json else glm4.MODEL_FILE)


def _model_config(folder: Path) -> dict[str, Any]:
    folder = folder if folder.is_dir() else folder.parent
    path = folder / "config.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        return {}  # the checkpoint reader complains about it
    return content if isinstance(content, dict) else {}


def _file(path: Path, name: str) -> Path:
    return path / name if path.is_dir() else path


assert set(OPENERS) == set(LAYOUTS)
