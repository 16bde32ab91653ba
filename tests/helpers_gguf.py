"""Tiny networks and vocabularies that llama.cpp knows, and reading GGUF back."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from openglm.checkpoints.gguf import rows
from openglm.checkpoints.maps import NameMap
from openglm.config import ModelConfig
from openglm.model import build
from openglm.tokenizers import Tokenizer, chatglm2, open_tokenizer

SENTENCES = (
    "The people of philosophy read <sop> and </s>, eop too.\n",
    "白日依山尽，黄河入海流。\n\n欲穷千里目，更上一层楼。",
    "def double(x):\n    return 2 * x  # twice\n",
    "  two spaces, a\ttab, 1234567 and 🙂 é",
    "\n\n\nthree lines\n   \n",
    "[gMASK] sop <|user|> I'LL don't 'S",
    " ",
    "中",
    "a\u00a0b\u3000c\u200d",
)


def causal_config(**changes: Any) -> ModelConfig:
    """Every size another one; rows of 64 and 96 columns make whole blocks of 32."""
    values: dict[str, Any] = {
        "vocab_size": 110,
        "hidden_size": 64,
        "num_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "intermediate_size": 96,
        "position": "rotary",
        "rotary_dim": 8,
        "rotary_pairing": "interleaved",
        "rope_theta": 500000.0,
        "norm": "rmsnorm",
        "norm_eps": 1.5625e-7,
        "activation": "swiglu",
        "linear_bias": False,
        "tie_word_embeddings": False,
    }
    return ModelConfig(**values | changes)


def metadata(path: Path) -> dict[str, Any]:
    """Key -> value of a GGUF file."""
    fields = gguf.GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if not key.startswith("GGUF.")}


def tensor_types(path: Path) -> dict[str, str]:
    """Tensor -> type of a GGUF file."""
    return {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(path).tensors}


def weights_of(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The weights of a GGUF file in float32, under our names; each is there exactly once."""
    table = NameMap(rows(config)).expand(config.num_layers)
    shapes = {name: tuple(p.shape) for name, p in build(config).named_parameters()}
    tensors = {
        t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors
    }
    assert list(tensors) == list(table)
    found: dict[str, Tensor] = {}
    for name, values in tensors.items():
        targets = table[name].targets
        parts = table[name].read([torch.tensor(values)], [shapes[target] for target in targets])
        found |= zip(targets, parts, strict=True)
    assert found.keys() == shapes.keys()
    return found


def small_tokenizer(kind: str, folder: Path) -> Tokenizer:
    """A vocabulary of a few hundred pieces in the format of `kind`, trained on `SENTENCES`."""
    path = folder / "tokenizer.model"
    if kind == "glm4":
        _write_ranks(path)
        return open_tokenizer(kind, path)
    num_pieces = _write_sentencepiece(path, adds_space=kind != "codegeex2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chatglm2, "NUM_PIECES", num_pieces)
        return open_tokenizer(kind, path)


def _write_sentencepiece(path: Path, adds_space: bool) -> int:
    import sentencepiece

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=400,
        hard_vocab_limit=False,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=adds_space,
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return int(sentencepiece.SentencePieceProcessor(str(path)).vocab_size())


def _write_ranks(path: Path) -> None:
    """The bytes, then what occurs in `SENTENCES`, in an order that no training gives.

    A token that is written `</s>` ends an answer in llama.cpp, whatever it is; so there is none.
    """
    found = {
        written[i : i + size]
        for written in (sentence.encode() for sentence in SENTENCES)
        for size in (2, 3, 4, 6)
        for i in range(len(written) - size + 1)
    }
    found.discard(b"</s>")
    tokens = [*(bytes([byte]) for byte in range(256)), *sorted(found, key=lambda t: t[::-1])]
    lines = (f"{base64.b64encode(token).decode()} {i}\n" for i, token in enumerate(tokens))
    path.write_text("".join(lines))
