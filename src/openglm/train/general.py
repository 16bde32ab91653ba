"""What a model knows apart from what it is taught: how well it predicts prose that no run has seen.

Fine-tuning can cost a model what it knew (ChatGLM's users met answers from the training data and
nothing else). So each run measures this before its first step and behind its last.
"""

from __future__ import annotations

import math

import torch

from openglm.model import Transformer
from openglm.nn.cache import Prefix
from openglm.nn.context import DenseContext
from openglm.quantize.passages import COMMANDS, HELD_OUT, LONGEST, UNSCORED, Passage, lay_out
from openglm.tokenizers import Tokenizer
from openglm.train.loss import HeadLoss

FIRST_HAN, LAST_HAN = "\u4e00", "\u9fff"


@torch.no_grad()
def bits_per_byte(
    model: Transformer, tokenizer: Tokenizer, prefix: Prefix | None = None
) -> dict[str, float]:
    """Bits per byte of UTF-8 in English and Chinese; each token is predicted from those before it.

    Args:
        model: in whatever mode; dropout is off meanwhile.
        tokenizer: of the model.
        prefix: in front of every passage.
    """
    was_training = model.training
    model.eval()
    try:
        return {
            f"{language}_bits_per_byte": _nats(model, tokenizer, text, prefix)
            / (math.log(2) * len(text.encode()))
            for language, text in _texts().items()
        }
    finally:
        model.train(was_training)


def _texts() -> dict[str, str]:
    """The held-out prose by language."""
    paragraphs = HELD_OUT.read_text(encoding="utf-8").split("\n\n")
    found: dict[str, list[str]] = {"english": [], "chinese": []}
    for paragraph in paragraphs:
        is_chinese = any(FIRST_HAN <= character <= LAST_HAN for character in paragraph)
        found["chinese" if is_chinese else "english"].append(paragraph.strip())
    return {language: "\n\n".join(texts) for language, texts in found.items()}


def _nats(model: Transformer, tokenizer: Tokenizer, text: str, prefix: Prefix | None) -> float:
    """Minus the log probability of a text; the first token of a causal model's passage is given."""
    length = min(LONGEST, model.config.max_position_embeddings) - COMMANDS
    ids = tokenizer.encode(text)
    pieces = (ids[start : start + length] for start in range(0, len(ids), length))
    passages = [lay_out(piece, tokenizer, model.config, 0.0) for piece in pieces if len(piece) > 1]
    return math.fsum(_passage_nats(model, passage, prefix) for passage in passages)


def _passage_nats(model: Transformer, passage: Passage, prefix: Prefix | None) -> float:
    inputs, device = passage.inputs, model.device
    context = DenseContext(inputs.mask.to(device), inputs.input_ids.shape[1], prefix=prefix)
    hidden = model.run(
        inputs.input_ids.to(device),
        inputs.position_ids.to(device),
        inputs.block_position_ids.to(device),
        context,
    )[0]  # (T, C)
    scored = (passage.targets != UNSCORED).to(device)
    targets = passage.targets.to(device)[scored]
    mean: torch.Tensor = HeadLoss.apply(hidden[scored], model.output_weight, targets, 0.0)  # type: ignore[no-untyped-call]
    return float(mean) * len(targets)
