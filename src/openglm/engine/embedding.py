"""Texts as vectors: the mean of what a network makes of their tokens.

No model of the family was trained for this. Texts about the same things point in like directions,
but models that were trained to tell texts apart do it better.
"""

from __future__ import annotations

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.engine.prompt import (
    Prompt,
    check_length,
    check_text,
    continuation_prompt,
    ids_in_front,
)
from openglm.engine.reading import Head, Reading
from openglm.engine.writer import Track
from openglm.errors import NumericalError, RequestError
from openglm.tokenizers import Tokenizer


class MeanState(Reading):
    """The mean of the last hidden states of some tokens of a prompt.

    Args:
        config: of the network.
        prompt: that is read, as if it were to be continued.
        start: of the tokens.
        end: of the tokens.

    Raises:
        ContextOverflow: the prompt has more tokens than the model has positions.
    """

    def __init__(self, config: ModelConfig, prompt: Prompt, start: int, end: int) -> None:
        is_causal = prompt.style == "causal"
        track = Track([*prompt.context_ids, *[prompt.first_id] * is_causal])
        check_length(config, len(track))
        super().__init__(track, 0 if is_causal else len(track))
        self.start, self.end = start, end
        # In float64, so that it hardly matters in which pieces the text was read.
        self._sum = torch.zeros(config.hidden_size, dtype=torch.float64)

    @property
    def vector(self) -> Tensor:
        """(C,) float32 on the CPU, of length 1: the direction of the mean."""
        return torch.nn.functional.normalize(self._sum, dim=0).float()

    def _keep(self, start: int, hidden: Tensor, head: Head) -> None:
        wanted = slice(max(self.start - start, 0), max(self.end - start, 0))
        self._sum += hidden[wanted].cpu().double().sum(dim=0)
        if not torch.isfinite(self._sum).all():
            raise NumericalError(
                "the network gave NaN or infinite hidden states, which have no mean",
                hint="half precision overflowed (try dtype bfloat16 or float32), or the weights "
                "are damaged (download or convert them again)",
            )


def mean_state(tokenizer: Tokenizer, config: ModelConfig, text: str) -> MeanState:
    """Reads a text as `generate` does; command tokens around it do not count.

    Raises:
        RequestError: it is no text, has no tokens, or too many.
    """
    ids = tokenizer.encode(check_text(text))
    if not ids:
        raise RequestError(f"the text {text[:40]!r} has no tokens, so it has no vector")
    start = len(ids_in_front(tokenizer, ids))
    prompt = continuation_prompt(tokenizer, text)
    return MeanState(config, prompt, start, start + len(ids))
