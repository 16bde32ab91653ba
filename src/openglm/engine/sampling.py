"""`SamplingParams` and the choice of the next token from logits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.errors import RequestError, suggest

MOST_BEAMS = 1024
"""Each beam has a cache and a row of the vocabulary of its own."""
LARGEST_PENALTY = 100
"""Of a length, as an exponent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Each blank of a request is generated under the same settings.

    Args:
        temperature: 0 = greedy; else logits are divided by it.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set of tokens with at least this probability; 1 = all.
        repetition_penalty: divide positive (multiply negative) logits of tokens generated so far
            in this request (CTRL, Keskar et al. 2019); 1 = off.
        no_repeat_ngram_size: never generate the same n-gram twice in a blank; 0 = off.
        min_tokens: a blank does not end before it has so many tokens.
        max_tokens: a blank has at most so many tokens.
        num_beams: beam search with so many beams instead of sampling; 1 = off.
        length_penalty: beams are ranked by sum of log p / length ** length_penalty.
        seed: of the sampling; None = a fresh one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram_size: int = 0
    min_tokens: int = 0
    max_tokens: int = 128
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        checks = (
            (0 <= self.temperature < math.inf, "temperature", "0 (greedy) or more, and finite"),
            (self.top_k >= 0, "top_k", "0 (off) or more"),
            (0 < self.top_p <= 1, "top_p", "above 0 and at most 1 (off)"),
            (0.01 <= self.repetition_penalty <= 100, "repetition_penalty", "0.01 to 100; 1 is off"),
            (self.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "0 (off) or more"),
            (self.max_tokens >= 1, "max_tokens", "at least 1"),
            (0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens"),
            (1 <= self.num_beams <= MOST_BEAMS, "num_beams", f"1 (off) to {MOST_BEAMS}"),
            (
                abs(self.length_penalty) <= LARGEST_PENALTY,
                "length_penalty",
                f"between -{LARGEST_PENALTY} and {LARGEST_PENALTY}",
            ),
            (self.seed is None or 0 <= self.seed < 2**64, "seed", "from 0 to 2**64 - 1"),
        )
        for passed, name, allowed in checks:
            if not passed:
                raise RequestError(f"{name}={getattr(self, name)} must be {allowed}")
        if self.num_beams > 1:
            off = {"temperature": 0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
            for name, value in off.items():
                if getattr(self, name) != value:
                    raise RequestError(
                        f"num_beams={self.num_beams} and {name}={getattr(self, name)} exclude each "
                        "other: beam search does not sample",
                        hint=f"leave out {name}, or set it to {value}",
                    )

    @classmethod
    def make(cls, defaults: SamplingParams, options: dict[str, object]) -> SamplingParams:
        """`defaults` with `options` replaced; `RequestError` for an unknown name or wrong type."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise RequestError(f"unknown sampling option {name!r}", hint=suggest(name, known))
            whole = "int" in str(known[name].type)
            is_number = isinstance(value, int) or (not whole and isinstance(value, float))
            if (not is_number or isinstance(value, bool)) and not (
                name == "seed" and value is None
            ):
                raise RequestError(f"{name}={value!r} must be a {'whole ' * whole}number")
        return dataclasses.replace(defaults, **options)  # type: ignore[arg-type]


class Sampler:
    """Chooses tokens one at a time for one request.

    Args:
        params: the settings.
        end_ids: tokens that end a blank.
        banned_ids: tokens that are never chosen (padding rows of the vocabulary).
    """

    def __init__(
        self, params: SamplingParams, end_ids: Sequence[int], banned_ids: Sequence[int] = ()
    ) -> None:
        self.params = params
        self.end_ids = list(end_ids)
        self.banned_ids = list(banned_ids)
        self.generator = torch.Generator()
        # 53 bits survive a trip through JSON and JavaScript.
        fresh = self.generator.seed() & (2**53 - 1)
        self.seed = fresh if params.seed is None else params.seed
        self.generator.manual_seed(self.seed)
        self.generated: list[int] = []

    def choose(self, logits: Tensor, blank: Sequence[int]) -> tuple[int, float]:
        """The next token and its log-probability under the model.

        Args:
            logits: (V,) float32.
            blank: tokens of the present blank so far.
        """
        params = self.params
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        scores = logits.float().cpu().clone()
        scores[self.banned_ids] = -torch.inf
        if params.repetition_penalty != 1.0 and self.generated:
            seen = torch.tensor(sorted(set(self.generated)))
            old = scores[seen]
            penalty = params.repetition_penalty
            scores[seen] = torch.where(old > 0, old / penalty, old * penalty)
        scores[banned_ngrams(blank, params.no_repeat_ngram_size)] = -torch.inf
        if len(blank) < params.min_tokens:
            scores[self.end_ids] = -torch.inf
        token = self._draw(scores)
        if token not in self.end_ids:
            self.generated.append(token)
        return token, float(log_probabilities[token])

    def _draw(self, scores: Tensor) -> int:
        if self.params.temperature == 0:
            return int(scores.argmax())
        probabilities = self.probabilities(scores)
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def probabilities(self, scores: Tensor) -> Tensor:
        """(V,) float32 what is drawn from, not normalised: temperature, then top-k, then top-p."""
        params = self.params
        # Differences to the best score cannot overflow, whatever the temperature.
        scores = ((scores - scores.max()).double() / params.temperature).float()
        if params.top_k:
            kth = scores.topk(min(params.top_k, len(scores))).values[-1]
            scores = scores.masked_fill(scores < kth, -torch.inf)
        probabilities = torch.softmax(scores, dim=-1)
        if params.top_p < 1:
            ordered, order = probabilities.sort(descending=True)
            # The first token that crosses the threshold is kept.
            dropped = ordered.cumsum(0) - ordered >= params.top_p
            probabilities[order[dropped]] = 0
        return probabilities


def banned_ngrams(tokens: Sequence[int], size: int) -> list[int]:
    """Tokens that would complete an n-gram of `size` already present in `tokens`."""
    if size == 0 or len(tokens) < size:
        return []
    prefix = tuple(tokens[len(tokens) - size + 1 :])
    return [
        tokens[start + size - 1]
        for start in range(len(tokens) - size + 1)
        if tuple(tokens[start : start + size - 1]) == prefix
    ]
