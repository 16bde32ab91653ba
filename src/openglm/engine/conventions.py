"""How each kind of model is asked to write: one value per kind of tokenizer, as officially.

A checkpoint says what a network computes; what it was trained to read and how its own code decodes
is known of its kind only. `openglm.chat.formats` holds how conversations are written down.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openglm.engine import beam_rules
from openglm.engine.beam_rules import BeamRule
from openglm.engine.params import SamplingParams
from openglm.tokenizers import SpecialTokens, Tokenizer

Style = Literal["grow", "refeed", "causal"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Convention:
    """How one kind of model is asked.

    Args:
        style: "grow": all blanks behind one context; "refeed": the text is read again for each
            blank, with the earlier ones filled in; "causal": left to right, no blanks.
        before: roles of the command tokens in front of a text.
        ends: roles of the tokens that end what is written.
        sampling: defaults of `generate` and `chat`, from the official demos.
        beams: how beam search ranks; None where the official code has none.
    """

    style: Style
    before: tuple[str, ...] = ()
    ends: tuple[str, ...] = ("eos",)
    sampling: SamplingParams
    beams: BeamRule | None

    def ids_before(self, special: SpecialTokens) -> list[int]:
        """The command tokens in front of a text."""
        return [special.get(role).id for role in self.before]

    def end_ids(self, special: SpecialTokens) -> frozenset[int]:
        """The tokens that end what is written."""
        return frozenset(special.get(role).id for role in self.ends)


GLM = Convention(
    style="grow",
    before=("cls",),
    ends=("eop", "eos"),
    sampling=SamplingParams(temperature=0.9, top_k=40),
    beams=beam_rules.GLM,
)
"""GLM itself, whatever its vocabulary."""

CHATGLM = Convention(
    style="refeed",
    ends=("eop",),
    sampling=SamplingParams(temperature=0.95, top_p=0.7),
    beams=beam_rules.OLD_TRANSFORMERS,
)
CHATGLM2 = Convention(
    style="causal",
    before=("gmask", "sop"),
    sampling=SamplingParams(temperature=0.8, top_p=0.8),
    beams=beam_rules.OLD_TRANSFORMERS,
)

CONVENTIONS: dict[str, Convention] = {
    "icetk": Convention(
        style="refeed",
        ends=("eop", "eos"),
        sampling=SamplingParams(temperature=1.0, top_p=0.7),
        beams=beam_rules.GLM_130B,
    ),
    "chatglm": CHATGLM,
    "chatglm-icetk": CHATGLM,
    "chatglm2": CHATGLM2,
    "chatglm3": CHATGLM2,
    "codegeex2": Convention(
        style="causal",
        before=("gmask", "sop"),
        sampling=SamplingParams(temperature=0.2, top_p=0.95),
        beams=beam_rules.OLD_TRANSFORMERS,
    ),
    "glm4": Convention(
        style="causal",
        before=("gmask", "sop"),
        sampling=SamplingParams(temperature=0.8, top_p=0.8),
        beams=beam_rules.TRANSFORMERS,
    ),
    "codegeex": Convention(
        style="causal", sampling=SamplingParams(temperature=0.8, top_p=0.95), beams=None
    ),
}


def convention(tokenizer: Tokenizer) -> Convention:
    """How models with this tokenizer are asked."""
    return CONVENTIONS.get(tokenizer.kind, GLM)
