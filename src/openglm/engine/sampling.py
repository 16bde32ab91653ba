"""The choice of the next token from logits.

In this order, which is that of transformers from the penalties on (vLLM puts min-p before top-k and
top-p, and knows no typical sampling):

1. impossible tokens: no text, end tokens before `min_tokens`, `bad_words`, what must be matched
2. `logit_bias`
3. `repetition_penalty`, then `presence_penalty` and `frequency_penalty`
4. `no_repeat_ngram_size`
5. `temperature`; at 0 the likeliest token is taken and the rest is skipped
6. `top_k`, `top_p`, `min_p`, `typical_p`, each over what is left by those before it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.engine import processors
from openglm.engine.params import SamplingParams
from openglm.errors import NumericalError, RequestError
from openglm.kernels.sampling import Filters, best, draw, log_sum_exp, probabilities

Rule = Callable[[Tensor, Sequence[int]], None]
"""Makes tokens impossible: changes (V,) scores in place, given the tokens of the blank so far."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A chosen token.

    Args:
        token: its id.
        log_probability: under the model, before all settings.
        top: ids and log-probabilities of the likeliest tokens, `SamplingParams.logprobs` of them.
    """

    token: int
    log_probability: float
    top: tuple[tuple[int, float], ...] = ()


class Sampler:
    """Chooses tokens one at a time for one request.

    Args:
        params: the settings.
        end_ids: tokens that end a blank.
        banned_ids: tokens that are never chosen (padding rows of the vocabulary).
        rules: of `bad_words` and of what the text must match; they need a tokenizer.
    """

    def __init__(
        self,
        params: SamplingParams,
        end_ids: Sequence[int],
        banned_ids: Sequence[int] = (),
        rules: Sequence[Rule] = (),
    ) -> None:
        self.params = params
        self.end_ids = list(end_ids)
        self.banned_ids = list(banned_ids)
        self.rules = rules
        self.bias = dict(params.logit_bias)
        self.filters = Filters(
            params.temperature, params.top_k, params.top_p, params.min_p, params.typical_p
        )
        self.generator = torch.Generator()
        self.seed = fresh_seed() if params.seed is None else params.seed
        self.generator.manual_seed(self.seed)
        self.generated: list[int] = []
        self.accepted = 0  # tokens of the present blank among those generated

    def choose(self, logits: Tensor, blank: Sequence[int]) -> Choice:
        """The next token.

        Args:
            logits: (V,) float32.
            blank: tokens of the present blank so far.

        Raises:
            NumericalError: NaN or +Inf among the logits.
            RequestError: the settings leave no token.
        """
        if not blank:
            self.accepted = 0
        logits = logits.float()
        normalizer = log_sum_exp(logits)
        if not math.isfinite(normalizer):
            check_logits(logits, f"token {len(blank) + 1} of a blank")
        scores = self.scores(logits, blank)
        if self.params.temperature == 0:
            token = best(scores)
        else:
            place = torch.rand((), dtype=torch.float64, generator=self.generator)
            token = draw(self.probabilities(scores), float(place))
        if token not in self.end_ids:
            self.accept(token)
        count = self.params.logprobs
        top = likeliest(logits - normalizer, count) if count else ()
        return Choice(token, float(logits[token] - normalizer), top)

    def accept(self, token: int) -> None:
        """Counts a token as written, for the penalties; `choose` does it itself."""
        self.generated.append(token)
        self.accepted += 1

    def scores(self, logits: Tensor, blank: Sequence[int]) -> Tensor:
        """(V,) float32 logits after steps 1 to 4; nothing is remembered.

        Args:
            logits: (V,) float32.
            blank: tokens of the present blank so far; those behind the accepted ones are a draft.

        Raises:
            RequestError: no token is left.
        """
        params = self.params
        scores = logits.float().cpu().clone()
        processors.ban(scores, self.banned_ids)
        if len(blank) < params.min_tokens:
            processors.ban(scores, self.end_ids)
        for rule in self.rules:
            rule(scores, blank)
        processors.add_bias(scores, self.bias)
        processors.penalise_repeats(
            scores,
            [*self.generated, *blank[self.accepted :]],
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        )
        processors.ban(scores, processors.banned_ngrams(blank, params.no_repeat_ngram_size))
        if scores[best(scores)] == -torch.inf:
            raise RequestError(
                f"nothing can be written as token {len(blank) + 1} of a blank: min_tokens, "
                "no_repeat_ngram_size, bad_words and what the text must match leave no token",
                hint="relax one of them; not every vocabulary can spell every text",
            )
        return scores

    def probabilities(self, scores: Tensor) -> Tensor:
        """(V,) float32, sum 1: what a token is drawn from, given what `scores` returned."""
        if self.params.temperature == 0:
            chosen = torch.zeros_like(scores)
            chosen[best(scores)] = 1
            return chosen
        return probabilities(scores, self.filters)


def fresh_seed() -> int:
    """A seed that nobody chose; its 53 bits survive a trip through JSON and JavaScript."""
    return torch.Generator().seed() & (2**53 - 1)


def likeliest(log_probabilities: Tensor, count: int | None) -> tuple[tuple[int, float], ...]:
    """The `count` best of (V,) log-probabilities with their ids; none for None."""
    top = log_probabilities.topk(min(count or 0, len(log_probabilities)))
    return tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))


def check_logits(logits: Tensor, place: str) -> None:
    """Raises `NumericalError` unless every row of (..., V) logits has a largest, finite number."""
    if torch.isfinite(logits.amax(dim=-1)).all():  # a NaN is the largest number of all
        return
    nans, infinite = int(logits.isnan().sum()), int((logits == torch.inf).sum())
    raise NumericalError(
        f"the network gave {nans} NaN and {infinite} +Inf among the {logits.shape[-1]} logits of "
        f"{place}; a token can only be chosen from numbers",
        hint="half precision overflowed (try dtype bfloat16 or float32), or the weights are "
        "damaged (download or convert them again)",
    )
