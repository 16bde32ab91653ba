"""Small vocabularies and token sequences, and slow but plain re-derivations to compare with."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np

from openglm.data.blank_infilling import Example
from openglm.data.packing import recut
from openglm.data.token_store import TokenStore, write_store
from openglm.tokenizers.special import layout

WORDPIECES = (
    "[PAD]",
    *(f"[unused{i}]" for i in range(99)),
    *("[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("the", "cat", "##s", "cafe", "un", "##aff", "##able"),  # 104 ... 110
    *("中", "国", "!", "[", "mask", "]", "<"),  # 111 ... 117
)
BPE_MERGES = (
    ("t", "h"),
    ("th", "e"),
    ("Ġ", "the"),
    ("c", "a"),
    ("ca", "t"),
    ("Ġ", "cat"),
    ("Ċ", "Ċ"),
)
CHINESE_CORPUS = ("黄黄黄黄黄黄河河河河河入入入入", "流流流")
CORPUS = (
    "The quick brown fox jumps over the lazy dog. 1234 5678, don't stop!\nIt rained.",
    "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。",
    "hello world, hello again: the river flows into the sea; the sea is wide.",
    "def double(x):\n    return 2 * x  # twice\n",
) * 20

SPECIAL = layout("mini").resolve(100)
"""Command tokens 100 ... 109 over a text vocabulary of 100 tokens."""
CLS, EOS = SPECIAL.cls_id, SPECIAL.eos_id
ENDS = np.zeros(110, dtype=bool)
ENDS[:100:10] = True
"""Over the vocabulary of `SPECIAL`: 0, 10, ... 90 end a sentence."""


RANKED = [bytes([byte]) for byte in range(256)]
RANKED += [b"ab", b"bc", b"abc", b" a", b"aa", b"aaa", b"12", "中".encode(), b"\n\n"]


def write_ranks(folder: Path, tokens: list[bytes]) -> Path:
    path = folder / "tokenizer.model"
    lines = (f"{base64.b64encode(t).decode()} {rank}\n" for rank, t in enumerate(tokens))
    path.write_text("".join(lines))
    return path


def byte_alphabet() -> list[str]:
    """GPT-2's stand-ins of the 256 bytes in the order of its vocabulary: " " is 220."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printable += range(ord("®"), ord("ÿ") + 1)
    num_others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + n) for n in range(num_others)]


def write_wordpiece(folder: Path, tokens: tuple[str, ...]) -> Path:
    """Writes `vocab.txt`."""
    path = folder / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n", encoding="utf-8")
    return path


def write_bpe(folder: Path, tokens: list[str]) -> Path:
    """Writes `vocab.json` and `merges.txt`; returns the folder."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "".join(f"{a} {b}\n" for a, b in BPE_MERGES)
    (folder / "merges.txt").write_text("#version: 0.2\n" + merges, encoding="utf-8")
    return folder


def packed(*documents: list[int]) -> np.ndarray:
    """`[CLS] doc eos [CLS] doc eos ...`."""
    return np.concatenate([[CLS, *document, EOS] for document in documents])


def text(size: int, seed: int = 0) -> np.ndarray:
    """`[CLS] text eos` with `size` random tokens, of which one in ten ends a sentence."""
    return packed(np.random.default_rng(seed).integers(0, 100, size).tolist())


def cut_up(tokens: np.ndarray, length: int, pieces: int) -> list[np.ndarray]:
    """`recut` with the command tokens and sentence ends of this file."""
    return recut(tokens, length, pieces, ENDS, CLS, EOS)


def store(folder: Path, documents: list[list[int]]) -> TokenStore:
    """A token store of these documents."""
    return write_store(folder, documents, vocab_size=110)


def rebuild(example: Example, mask_id: int, eop_id: int) -> list[int]:
    """Puts the contents of the blanks back into the context, from ids and positions alone."""
    contents: dict[int, list[int]] = {}
    for index in range(example.context_length, len(example.targets)):
        blank = contents.setdefault(int(example.position_ids[index]), [])
        assert len(blank) + 1 == example.block_position_ids[index]
        blank.append(int(example.targets[index]))
    text: list[int] = []
    for place, token in enumerate(example.input_ids[: example.context_length].tolist()):
        if token != mask_id:
            text.append(token)
            continue
        *content, end = contents.pop(int(example.position_ids[place]))
        assert end == eop_id
        text.extend(content)
    assert not contents, f"blanks without a mask at {list(contents)}"
    return text


def rows(example: Example) -> dict[str, list[int]]:
    """The arrays of an example as lists."""
    names = ("input_ids", "targets", "loss_mask", "position_ids", "block_position_ids")
    return {name: np.asarray(getattr(example, name)).tolist() for name in names}
