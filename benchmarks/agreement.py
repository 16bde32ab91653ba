"""Claim: the compiled engine writes what plain torch writes with the same quantization.

`mini` continues 200 texts greedily, all of them together in the engine: on the compiled kernels,
and in plain torch in another process. Where kernels round activations, the reference does
too (`reference_integer`). Both then read the reference's tokens once more, for logits that can be
compared: those behind each token of a text, against the largest of them.

Sums in another order differ by 1e-6 or so, which turns some activations into the neighbouring
integer, a step of 1 in 127. How much that alone may do, the reference tells: by how much its own
logits change if its position tables are a millionth larger.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import openglm
from benchmarks.record import alone, spread
from openglm.engine.reader import reader_for
from openglm.kernels.cpu import REFERENCE, VARIABLE, module
from openglm.kernels.packed_linear import reference_integer
from openglm.quant.linear import Packed, PackedEmbedding, PackedLinear

MODEL, NEW, PROMPTS = "mini", 32, 200
CASES = (
    ("int8", "float32"),
    ("int4", "float32"),
    ("int8-g128+embeddings+head", "int8"),
    ("int4-g128+embeddings+head", "int8"),
    ("int4-g32+embeddings+head", "int8"),
    ("int4-g128+embeddings+head", "float32"),
)
RECIPES = Path(__file__).parents[1] / "recipes"
NUDGE = 1e-6
WORDS = 12
"""Of each English text; the Chinese ones are lines of poems."""


class RoundingLinear(nn.Module):
    """A packed linear layer that computes what integer kernels do, in plain torch."""

    def __init__(self, plain: Packed) -> None:
        super().__init__()
        self.plain = plain

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out) float32."""
        whole = reference_integer(x, self.plain.packed)
        bias = getattr(self.plain, "bias", None)
        return whole if bias is None else whole + bias


class RoundingEmbedding(RoundingLinear):
    """A packed word embedding likewise, whose logits are products."""

    def forward(self, input_ids: Tensor) -> Tensor:
        """(B, T) int64 -> (B, T, C)."""
        return self.plain(input_ids)  # type: ignore[no-any-return]

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) float32."""
        return super().forward(hidden)


def measure() -> dict[str, Any]:
    """Agreement of tokens and logits for each scheme."""
    texts = prompts()
    results = {}
    for dtype, activations in CASES:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "reference.pt"
            alone(_write_reference, file, dtype, activations, texts)
            results[f"{dtype}, {activations} activations"] = alone(
                _compare, file, dtype, activations, texts
            )
    return {"model": MODEL, "prompts": len(texts), "new_tokens": NEW, "results": results}


def prompts() -> list[str]:
    """Beginnings of poems, and pieces of fables."""
    poems = (RECIPES / "mini" / "famous.txt").read_text(encoding="utf-8").splitlines()
    words = (RECIPES / "tiny" / "text.txt").read_text(encoding="utf-8").split()
    fables = [" ".join(words[start : start + WORDS]) for start in range(0, len(words), WORDS)]
    half = PROMPTS // 2
    return poems[:half] + fables[:half]


def _write_reference(file: Path, dtype: str, activations: str, texts: list[str]) -> None:
    """Tokens (N, T) and logits (N, T, V) of plain torch, to a file."""
    os.environ[VARIABLE] = REFERENCE
    torch.set_num_threads(1)  # on a busy machine, torch's threads wait for each other
    model = openglm.load(MODEL, dtype=dtype, device="cpu")
    assert module() is None
    if activations == "int8":
        _round_activations(model.network)
    tokens = _written(model, texts)
    pairs = list(zip(texts, tokens, strict=True))
    logits = torch.stack([_logits_of(model, *pair) for pair in pairs])
    with torch.no_grad():
        for table in model.network.positions.parameters():
            table.mul_(1 + NUDGE)
    nudged = torch.stack([_logits_of(model, *pair) for pair in pairs])
    own = _relative(nudged, logits).flatten()
    torch.save({"tokens": torch.tensor(tokens), "logits": logits, "own": own}, file)


def _compare(file: Path, dtype: str, activations: str, texts: list[str]) -> dict[str, Any]:
    """The compiled engine against what the file holds."""
    model = openglm.load(MODEL, dtype=dtype, device="cpu", activations=activations)
    assert module() is not None
    torch.set_num_threads(1)  # the kernels' threads stay as many as they are
    reference = torch.load(file)
    differences, divergences = [], []
    for index, (text, written) in enumerate(zip(texts, _written(model, texts), strict=True)):
        wanted, expected = reference["tokens"][index].tolist(), reference["logits"][index]
        found = _logits_of(model, text, wanted)
        differences += _relative(found, expected).tolist()
        if written != wanted:
            divergences.append(_divergence(index, wanted, written, expected, found))
    return {
        "equal_prompts": 1 - len(divergences) / len(texts),
        "relative_difference": spread(differences),
        "relative_difference_of_nudged_reference": spread(reference["own"].tolist()),
        "divergences": divergences,
    }


def _written(model: openglm.LanguageModel, texts: list[str]) -> list[list[int]]:
    """What the engine writes behind each text; nothing ends before `NEW` tokens."""
    settings = {"temperature": 0.0, "max_tokens": NEW, "min_tokens": NEW}
    return [completion.token_ids for completion in model.generate_batch(texts, **settings)]


def _relative(found: Tensor, expected: Tensor) -> Tensor:
    """(..., V) logits -> (...): the largest difference, by the largest logit."""
    return (found - expected).abs().amax(-1) / expected.abs().amax(-1)


def _divergence(
    prompt: int, wanted: list[int], written: list[int], expected: Tensor, found: Tensor
) -> dict[str, float]:
    """The first token that differs, and how near the two candidates were: logits (T, V)."""
    place = next(i for i, pair in enumerate(zip(wanted, written, strict=True)) if len({*pair}) > 1)
    candidates = [wanted[place], written[place]]
    first, second = expected[place, candidates].tolist()
    return {
        "prompt": prompt,
        "token": place,
        "gap_of_candidates": first - second,
        "largest_difference_there": float((found - expected)[place].abs().max()),
    }


@torch.no_grad()
def _logits_of(model: openglm.LanguageModel, text: str, written: list[int]) -> Tensor:
    """(T, V) float32: the logits from which each of T given tokens would be chosen."""
    prompt = model.request(text).prompt
    reader = reader_for(model.network)(
        model.network, torch.tensor([prompt.context_ids]), len(written)
    )
    tokens = torch.tensor([[prompt.first_id, *written[:-1]]])
    blocks = torch.arange(1, len(written) + 1)[None]
    positions = torch.full_like(blocks, prompt.mask_positions[0])  # GLM: all at the blank
    return reader.feed(tokens, positions, blocks)[0]


def _round_activations(network: nn.Module) -> None:
    """Puts layers that round activations in the place of packed ones, in place."""
    kinds = {PackedLinear: RoundingLinear, PackedEmbedding: RoundingEmbedding}
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if kind := kinds.get(type(child)):
                setattr(parent, name, kind(child))
