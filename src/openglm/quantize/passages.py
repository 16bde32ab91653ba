"""Text as a network was trained to read it: passages to calibrate with, and to be measured on.

Causal models read a passage left to right, behind their command tokens. The others read the first
part of it as a context that sees itself whole, and then, behind `sop`, the rest as one long blank:

    GLM          [CLS] t1 ... tc [gMASK] | sop t(c+1) ... tn
    ChatGLM-6B         t1 ... tc [gMASK] | sop t(c+1) ... tn

Calibration takes half of each passage for the context, so that both ways of reading count. Quality
is measured without a context (c = 0): every token is predicted from those before it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.data.sources import SourceConfig, read_rows
from openglm.engine.conventions import convention
from openglm.errors import DataError
from openglm.nn.masks import MaskSpec
from openglm.quant.blockwise import Inputs
from openglm.tokenizers import Tokenizer

LONGEST = 512
"""Tokens of a passage, or what the model has positions for."""
COMMANDS = 4
"""Places that are left for command tokens."""
UNSCORED = -100
HELD_OUT = Path(__file__).with_name("held_out.txt")
"""English and Chinese prose, written for this: no model has read it, ours included."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage and the (T,) int64 tokens that each place should predict, or `UNSCORED`."""

    inputs: Inputs
    targets: Tensor


@dataclass(frozen=True, slots=True)
class Text:
    """A text cut into passages.

    Args:
        name: of its file.
        passages: all equally long but the last.
        sha256: of the text.
    """

    name: str
    passages: list[Passage]
    sha256: str


def read_text(
    path: Path,
    tokenizer: Tokenizer,
    config: ModelConfig,
    context_share: float,
    most: int,
    most_tokens: int | None = None,
) -> Text:
    """Reads a file (text, or JSON lines with `text`; also .gz and .xz) as passages.

    Args:
        path: the file.
        tokenizer: of the model.
        config: the architecture.
        context_share: how much of a passage becomes context in models that have one.
        most: number of passages; the rest of the text is left out.
        most_tokens: of all passages together; None = as many as there are.

    Raises:
        DataError: no such file, undecodable, or without a passage of two tokens.
    """
    source = SourceConfig(name=path.name, path=path.name)
    documents = [d for row in read_rows(source, path.parent, 0.0) for d in row.documents]
    whole = "\n\n".join(documents)
    length = min(LONGEST, config.max_position_embeddings) - COMMANDS
    ids = tokenizer.encode(whole)[:most_tokens]
    pieces = [ids[start : start + length] for start in range(0, len(ids), length)][:most]
    passages = [lay_out(p, tokenizer, config, context_share) for p in pieces if len(p) > 1]
    if not passages:
        raise DataError(f"{path} has {len(ids)} tokens, too few to learn anything from")
    return Text(path.name, passages, hashlib.sha256(whole.encode()).hexdigest())


def lay_out(
    tokens: list[int], tokenizer: Tokenizer, config: ModelConfig, context_share: float
) -> Passage:
    """One passage of two tokens at least; see the module for what it becomes."""
    special, how = tokenizer.special, convention(tokenizer)
    before = how.ids_before(special)
    if how.style == "causal":
        ids = [*before, *tokens]
        targets = [*[UNSCORED] * (len(before) - 1), *ids[max(len(before), 1) :]]
        positions = torch.arange(len(ids) - 1)
        causal = (positions, torch.zeros_like(positions), MaskSpec.causal())
        return _passage(ids[:-1], targets, *causal)
    cut = int(context_share * len(tokens))
    context = [*before, *tokens[:cut], special.gmask_id]
    written = tokens[cut:]
    place = len(context) - 1
    inside = torch.arange(1, len(written) + 1)
    counts_on = config.position == "rotary"  # there are no block positions to count instead
    return _passage(
        [*context, special.sop_id, *written[:-1]],
        [*[UNSCORED] * len(context), *written],
        torch.cat([torch.arange(len(context)), place + inside * counts_on]),
        torch.cat([torch.zeros(len(context), dtype=torch.int64), inside]),
        MaskSpec.prefix(torch.tensor([len(context)])),
    )


def _passage(
    ids: list[int], targets: list[int], positions: Tensor, blocks: Tensor, mask: MaskSpec
) -> Passage:
    inputs = Inputs(torch.tensor([ids]), positions[None], blocks[None], mask)
    return Passage(inputs, torch.tensor(targets))
