"""`SamplingParams`: what a request may ask of the choice of its tokens.

Names and ranges are OpenAI's and vLLM's where these have the setting; docs/sampling.md explains all
of them. A value is checked when it is given, not when the first token is chosen.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openglm.errors import RequestError, suggest

MOST_BEAMS = 1024
"""Each beam has a cache and a row of the vocabulary of its own."""
MOST_COMPLETIONS = 128
"""Of one prompt: OpenAI's limit of `n`."""
MOST_LOGPROBS = 20
"""Alternatives per token: the limit of OpenAI's `top_logprobs` and of vLLM."""
MOST_TEXTS, LONGEST_TEXT = 256, 1024
"""Of `stop`, `bad_words` and `choice`: each is looked for at every token."""
LARGEST_BIAS = 100
"""Of a logit: OpenAI's limit, beyond which nothing changes in float32."""
LARGEST_PENALTY = 50
"""Of a length, as an exponent: a million tokens to this power are a float64, and so is one over
that."""
LARGEST_TEMPERATURE = 1e30
"""Far below the largest float32, and all tokens are equally likely there already."""
CONSTRAINTS = ("json_schema", "regex", "grammar", "choice")
"""What a text must match: one of them at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens are chosen. Each blank of a request is generated under the same settings.

    Lists become tuples and dictionaries sorted pairs, so that settings can be hashed.

    Args:
        temperature: 0 = greedy; else logits are divided by it.
        top_k: keep the k most likely tokens; 0 = all.
        top_p: keep the smallest set of tokens with at least this probability; 1 = all.
        min_p: keep tokens at least so likely as this share of the likeliest (Nguyen et al. 2024);
            0 = all.
        typical_p: keep the smallest set of tokens with at least this probability whose
            information is nearest to the entropy (Meister et al. 2022); 1 = all.
        repetition_penalty: divide positive (multiply negative) logits of tokens generated so far
            in this request (CTRL, Keskar et al. 2019); 1 = off.
        presence_penalty: subtracted from logits of tokens generated so far in this request.
        frequency_penalty: likewise, once for each time that the token was generated.
        no_repeat_ngram_size: never generate the same n-gram twice in a blank; 0 = off.
        logit_bias: id -> what is added to its logit.
        bad_words: texts that are never written, nor inside longer words.
        stop: texts that end a blank and are not part of it.
        min_tokens: a blank does not end before it has so many tokens.
        max_tokens: a blank has at most so many tokens.
        n: so many completions of one prompt; completion i has seed + i (as in vLLM).
        best_of: write so many and keep the n with the highest mean log p; None = n.
        logprobs: report log p of each token and of so many alternatives; None = off.
        json_schema: what is written is JSON that fits this schema (a dictionary or its text).
        regex: what is written matches this pattern as a whole.
        grammar: what is written comes from the rule `root` of this grammar, in xgrammar's EBNF.
        choice: what is written is one of these texts.
        num_beams: beam search with so many beams instead of sampling; 1 = off.
        length_penalty: beams are ranked by sum of log p / length ** length_penalty.
        seed: of the sampling; None = a fresh one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    bad_words: str | Sequence[str] = ()
    stop: str | Sequence[str] = ()
    min_tokens: int = 0
    max_tokens: int = 128
    n: int = 1
    best_of: int | None = None
    logprobs: int | None = None
    json_schema: str | Mapping[str, Any] | None = None
    regex: str | None = None
    grammar: str | None = None
    choice: Sequence[str] | None = None
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, freeze in _FREEZERS.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, freeze(name, getattr(self, name)))
        for passed, name, allowed in (*self._ranges(), *self._shared_ranges()):
            if not passed:
                raise RequestError(f"{name}={getattr(self, name)} must be {allowed}")
        given = [name for name in CONSTRAINTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RequestError(
                f"{' and '.join(given)} exclude each other: a text is held to one of them",
                hint=f"leave out all but one of {', '.join(CONSTRAINTS)}",
            )
        if self.num_beams > 1:
            self._refuse_beside_beams()
        if self.num_completions > 1 and self.temperature == 0:
            raise RequestError(
                f"n={self.n} and best_of={self.best_of} at temperature=0: all would be equal",
                hint="set a temperature, or leave n and best_of out",
            )

    @property
    def num_completions(self) -> int:
        """How many are written, of which `n` are kept."""
        return self.n if self.best_of is None else self.best_of

    def nth(self, seed: int, index: int) -> SamplingParams:
        """The settings that write completion `index` alone, given the seed of the first."""
        return dataclasses.replace(self, n=1, best_of=None, seed=(seed + index) % 2**64)

    @property
    def constraint(self) -> tuple[str, Any] | None:
        """Name and value of what the text must match, if there is something."""
        for name in CONSTRAINTS:
            if getattr(self, name) is not None:
                return name, getattr(self, name)
        return None

    def _ranges(self) -> Iterator[tuple[bool, str, str]]:
        """Checks of the choice of a token: passed, name, what is allowed. NaN passes none."""
        limits = f"from 0 (greedy) to {LARGEST_TEMPERATURE:g}"
        yield 0 <= self.temperature <= LARGEST_TEMPERATURE, "temperature", limits
        yield self.top_k >= 0, "top_k", "0 (off) or more"
        yield 0 < self.top_p <= 1, "top_p", "above 0 and at most 1 (off)"
        yield 0 <= self.min_p <= 1, "min_p", "from 0 (off) to 1"
        yield 0 < self.typical_p <= 1, "typical_p", "above 0 and at most 1 (off)"
        within = 0.01 <= self.repetition_penalty <= 100
        yield within, "repetition_penalty", "0.01 to 100; 1 is off"
        for name in ("presence_penalty", "frequency_penalty"):
            yield -2 <= getattr(self, name) <= 2, name, "from -2 to 2; 0 is off"
        yield self.no_repeat_ngram_size >= 0, "no_repeat_ngram_size", "0 (off) or more"
        for token, bias in dict(self.logit_bias).items():
            valid = token >= 0 and abs(bias) <= LARGEST_BIAS
            limits = f"ids of tokens, each with -{LARGEST_BIAS} to {LARGEST_BIAS}"
            yield valid, "logit_bias", limits

    def _shared_ranges(self) -> Iterator[tuple[bool, str, str]]:
        """Checks of lengths, numbers and the seed."""
        yield self.max_tokens >= 1, "max_tokens", "at least 1"
        yield 0 <= self.min_tokens <= self.max_tokens, "min_tokens", "between 0 and max_tokens"
        yield 1 <= self.n <= MOST_COMPLETIONS, "n", f"1 to {MOST_COMPLETIONS}"
        best = self.best_of is None or self.n <= self.best_of <= MOST_COMPLETIONS
        yield best, "best_of", f"from n={self.n} to {MOST_COMPLETIONS}"
        shown = self.logprobs is None or 0 <= self.logprobs <= MOST_LOGPROBS
        yield shown, "logprobs", f"0 to {MOST_LOGPROBS}, or None (off)"
        yield self.choice is None or len(self.choice) > 0, "choice", "one text or more"
        yield 1 <= self.num_beams <= MOST_BEAMS, "num_beams", f"1 (off) to {MOST_BEAMS}"
        limits = f"between -{LARGEST_PENALTY} and {LARGEST_PENALTY}"
        yield abs(self.length_penalty) <= LARGEST_PENALTY, "length_penalty", limits
        yield self.seed is None or 0 <= self.seed < 2**64, "seed", "from 0 to 2**64 - 1"

    def _refuse_beside_beams(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in _BESIDE_BEAMS and value != field.default:
                raise RequestError(
                    f"num_beams={self.num_beams} and {field.name}={value} exclude each other: "
                    "beam search does not sample",
                    hint=f"leave out {field.name}, or set it to {field.default!r}",
                )

    @classmethod
    def make(cls, defaults: SamplingParams, options: dict[str, Any]) -> SamplingParams:
        """`defaults` with `options` replaced; `RequestError` for an unknown name or wrong type."""
        known = {field.name: field for field in dataclasses.fields(cls)}
        for name, value in options.items():
            if name not in known:
                raise RequestError(f"unknown sampling option {name!r}", hint=suggest(name, known))
            if name in _FREEZERS or (value is None and known[name].default is None):
                continue  # checked where it is frozen
            whole = "int" in str(known[name].type)
            is_number = isinstance(value, int) or (not whole and isinstance(value, float))
            if not is_number or isinstance(value, bool):
                raise RequestError(f"{name}={value!r} must be a {'whole ' * whole}number")
        return dataclasses.replace(defaults, **options)


def _bias(name: str, value: object) -> tuple[tuple[int, float], ...]:
    """Sorted pairs of a dictionary id -> bias."""
    pairs = value if isinstance(value, tuple) else tuple(getattr(value, "items", lambda: "?")())
    for pair in pairs:
        numbers = isinstance(pair, tuple) and len(pair) == 2 and type(pair[0]) is int
        if not numbers or type(pair[1]) not in (int, float):
            raise RequestError(f"{name}={value!r} must be a dictionary of ids and numbers")
    return tuple(sorted(pairs))


def _texts(name: str, value: object) -> tuple[str, ...]:
    """A text or a list of texts, as a tuple."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise RequestError(f"{name}={value!r} must be a text or a list of texts")
    if len(texts) > MOST_TEXTS:
        raise RequestError(f"{name} has {len(texts)} texts; at most {MOST_TEXTS} are allowed")
    for text in texts:
        if not 0 < len(text) <= LONGEST_TEXT:
            raise RequestError(
                f"{name} has a text of {len(text)} characters; 1 to {LONGEST_TEXT} are allowed"
            )
    return tuple(texts)


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise RequestError(f"{name}={value!r} must be a text with something in it")
    return value


def _schema(name: str, value: object) -> str:
    """A schema as JSON; the order of its properties is kept, in which they will be written."""
    try:
        schema = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, TypeError, RecursionError) as error:
        raise RequestError(f"{name} is not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise RequestError(f"{name}={text[:40]} must be an object; {{}} takes any JSON")
    return text


_FREEZERS: dict[str, Callable[[str, object], object]] = {
    "logit_bias": _bias,
    "bad_words": _texts,
    "stop": _texts,
    "choice": _texts,
    "json_schema": _schema,
    "regex": _text,
    "grammar": _text,
}
"""Checks a value that is no number and returns it as something that cannot change."""
_BESIDE_BEAMS = {
    "no_repeat_ngram_size",
    "min_tokens",
    "max_tokens",
    "num_beams",
    "length_penalty",
    "seed",
    "logprobs",
}
"""Settings that beam search knows, or that do not touch the choice."""
