"""How beam search ranks hypotheses, by each model's official code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamRule:
    """One way of ranking hypotheses by their sum of log p and their length.

    Args:
        counts_context: the length counts the context and the first token (`sop`) too.
        counts_end: the length counts the end token, and what is still possible is judged by the
            beams that go on; else by the best candidate, before it is appended.
        ngram_context: how far an n-gram ban looks back into the context: not at all, at its edge
            (an n-gram may begin in it, but its last token was written), or everywhere.
        is_opennmt: OpenNMT's search: the divisor is ((5 + length) / 6) ** power instead of
            max(1, length) ** power (Wu et al. 2016, equation 14); an end token finishes a
            hypothesis even behind num_beams better candidates; blocked tokens leave the
            distribution before log p is taken.
    """

    counts_context: bool = False
    counts_end: bool = False
    ngram_context: Literal["none", "edge", "all"] = "all"
    is_opennmt: bool = False

    def score(self, log_probability: float, length: int, power: float) -> float:
        """The sum of log p of `length` tokens, normalised."""
        base = (5 + length) / 6 if self.is_opennmt else max(length, 1)
        return float(log_probability / base**power)


GLM = BeamRule(ngram_context="none")
"""GLM's sequence-to-sequence evaluation."""
GLM_130B = BeamRule(counts_context=True, counts_end=True, ngram_context="edge", is_opennmt=True)
"""GLM-130B's `BeamSearchStrategy`, with `consider_end`."""
OLD_TRANSFORMERS = BeamRule(counts_context=True)
"""transformers up to 4.34, of the time of ChatGLM-6B, ChatGLM2, ChatGLM3 and CodeGeeX2."""
TRANSFORMERS = BeamRule(counts_end=True)
"""transformers since then: GLM-4."""
