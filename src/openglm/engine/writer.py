"""`Writer`: one request as a state machine, without a network.

It says which tokens, at which positions, a network must have read before it may choose the next
token, and what a chosen token means. Whoever drives it (`Filler` for one request, `Engine` for
many) feeds as much of `track` as it likes per call and may forget and re-read it at any time.

GLM fills all blanks left to right in one growing track. After the context, each blank is fed as
`sop` and its tokens at the position of its mask token, with block positions 1, 2, ... . `eop` or
`eos` ends a blank and is not fed; the next blank sees the earlier ones (GLM paper, section 2.1).

GLM-130B and ChatGLM-6B read the text again for each blank, with the earlier ones filled in: each
blank has a track of its own, a pass. A causal model's continuation is a blank at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from openglm.config import ModelConfig
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt, check_length
from openglm.engine.sampling import Choice, Rule, Sampler
from openglm.errors import ContextOverflow, RequestError

Ends = Callable[[Sequence[int]], bool]
"""Whether a blank ends behind its last token, given all its tokens: for stop strings."""


class Asked(NamedTuple):
    """A request as a writer, and `Engine.add`, takes it.

    Args:
        prompt: the context.
        params: sampling settings.
        rules: of `bad_words` and of what the text must match, in this request alone.
        ends: of the stop strings.
    """

    prompt: Prompt
    params: SamplingParams
    rules: Sequence[Rule] = ()
    ends: Ends | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One event of filling: a token of a blank, or the end of it.

    Args:
        blank: index of the blank.
        token: the token; None for the end.
        log_probability: of the token (of the end token where there was one), under the model.
        finish_reason: "stop" or "length" at the end of a blank ("cancelled" or "deadline" where
            the request ended in it), else None.
        top: ids and log-probabilities of the likeliest tokens, if they were asked for.
        end_token: that ended a blank, which is no part of it; None where none did.
    """

    blank: int
    token: int | None
    log_probability: float
    finish_reason: str | None = None
    top: tuple[tuple[int, float], ...] = ()
    end_token: int | None = None


class Track:
    """Everything that the network must have read in one pass, in order.

    Args:
        context_ids: its first tokens, at positions 0, 1, ... .
    """

    def __init__(self, context_ids: list[int]) -> None:
        self.tokens = list(context_ids)
        self.positions = list(range(len(context_ids)))
        self.blocks = [0] * len(context_ids)

    def __len__(self) -> int:
        return len(self.tokens)

    def append(self, token: int, position: int, block: int) -> None:
        """Adds one token with its position and block position."""
        self.tokens.append(token)
        self.positions.append(position)
        self.blocks.append(block)

    def rows(self, start: int, end: int | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens, positions and block positions from `start` on, (1, T) int64 each."""
        parts = (self.tokens, self.positions, self.blocks)
        tokens, positions, blocks = (torch.tensor([part[start:end]]) for part in parts)
        return tokens, positions, blocks


class Writer:
    """Writes the blanks of one prompt.

    Args:
        config: of the network.
        prompt: the context.
        params: sampling settings.
        banned_ids: tokens that are only chosen if they end a blank.
        rules: see `Sampler`.
        ends: see `Ends`.

    Attributes:
        track: what is read in the present pass; its last token waits for a choice behind it.
        passes: how many tracks there were; a new one has nothing in common with the one before.
        context_ids: the first tokens of the track.
        index: the present blank.
        blank: its tokens so far.
        position: of the present blank; its tokens stay there, or count on from it.
        done: nothing is left to write.

    Raises:
        RequestError: the context or a blank does not fit the model's positions, an id is none of
            its vocabulary, or a setting has no rule.
    """

    def __init__(
        self,
        config: ModelConfig,
        prompt: Prompt,
        params: SamplingParams,
        banned_ids: Collection[int] = (),
        rules: Sequence[Rule] = (),
        ends: Ends | None = None,
    ) -> None:
        _check_room(config, prompt, params)
        _check_settings(config, params, rules, ends)
        self.config = config
        self.prompt = prompt
        self.params = params
        self.banned = sorted(set(banned_ids) - prompt.end_ids)
        self.sampler = Sampler(params, sorted(prompt.end_ids), self.banned, rules)
        self.ends = ends
        self.context_ids = list(prompt.context_ids)
        self.passes = 0
        self.done = False
        self._places = dict(enumerate(prompt.mask_positions))
        self._left = list(self._places)
        if prompt.style == "refeed":  # long blanks last
            self._left.sort(key=lambda blank: self._is_long(self._places[blank]))
        self._begin()

    @property
    def visible(self) -> int:
        """How many leading tokens of the track see each other whole; 0 for a causal model."""
        return 0 if self.prompt.style == "causal" else len(self.context_ids)

    @property
    def num_left(self) -> int:
        """How many more tokens the present blank may have."""
        return self.params.max_tokens - len(self.blank)

    def write(self, logits: Tensor) -> list[Step]:
        """Chooses the token behind the track from (V,) logits, and takes it."""
        return self.take(self.sampler.choose(logits, self.blank))

    def take(self, choice: Choice) -> list[Step]:
        """Goes on with a chosen token: one step, or two if the blank ends behind it."""
        token, log_probability = choice.token, choice.log_probability
        if token in self.prompt.end_ids:
            end = self.end("stop", log_probability)
            return [dataclasses.replace(end, top=choice.top, end_token=token)]
        self.blank.append(token)
        self.track.append(token, *self.place(len(self.blank) + 1))
        step = Step(self.index, token, log_probability, top=choice.top)
        if self.ends is not None and self.ends(self.blank):
            return [step, self.end("stop")]
        return [step] if self.num_left else [step, self.end("length")]

    def end(self, reason: str, log_probability: float = 0.0) -> Step:
        """Ends the present blank and begins the next one, if there is one."""
        step = Step(self.index, None, log_probability, reason)
        if self.prompt.style == "refeed":
            self._fill_in()
        self.done = not self._left
        if not self.done:
            self._begin()
        return step

    def place(self, number: int) -> tuple[int, int]:
        """Position and block position of token `number` of the present blank; `sop` is 1."""
        return self.position + number * self.counts_on, number

    def _begin(self) -> None:
        """Begins the next blank, with a new track unless the present one grows on."""
        self.index = self._left.pop(0)
        self.blank: list[int] = []
        if self.passes == 0 or self.prompt.style == "refeed":
            self.track = Track(self.context_ids)
            self.passes += 1
        self.position = self._places[self.index]
        self.counts_on = self.prompt.style == "causal"
        # Positions behind a long blank count on in a model that has no block positions.
        counts = self.prompt.style == "refeed" and self.config.position == "rotary"
        if counts and self._is_long(self.position):
            self.counts_on, self.position = True, len(self.context_ids) - 1
        self.track.append(self.prompt.first_id, *self.place(1))

    def _is_long(self, place: int) -> bool:
        return self.context_ids[place] == self.prompt.long_id

    def _fill_in(self) -> None:
        """Puts the present blank into the text that the next pass reads."""
        place = self._places[self.index]
        self.context_ids = [*self.context_ids[:place], *self.blank, *self.context_ids[place + 1 :]]
        for other, behind in self._places.items():
            if behind > place:
                self._places[other] += len(self.blank) - 1


def room(config: ModelConfig, prompt: Prompt) -> int:
    """How long each blank may be; GLM has positions of their own for blanks.

    In style "refeed" the last of k blanks stands behind the context with k - 1 masks replaced.
    """
    limit = config.max_position_embeddings
    if prompt.style == "grow":
        return limit - 1
    num_blanks = len(prompt.mask_positions)
    return (limit - len(prompt.context_ids) - 2 + num_blanks) // num_blanks


def most_tokens(prompt: Prompt, params: SamplingParams) -> int:
    """How many tokens may have to be read in one pass; the very last one never is."""
    length, num_blanks, longest = (
        len(prompt.context_ids),
        len(prompt.mask_positions),
        params.max_tokens,
    )
    if prompt.style == "grow":
        return length + num_blanks * (1 + longest) - 1
    return length + (num_blanks - 1) * (longest - 1) + longest


def _check_room(config: ModelConfig, prompt: Prompt, params: SamplingParams) -> None:
    limit = config.max_position_embeddings
    positions = f"this model has {limit} positions"
    most = room(config, prompt)
    if most < 1:
        raise ContextOverflow(
            f"the prompt of {len(prompt.context_ids) + 1} tokens leaves no room: {positions}",
            hint="shorten it",
        )
    if params.max_tokens > most:
        raise RequestError(
            f"max_tokens={params.max_tokens} must be at most {most} here: {positions}"
        )
    check_length(config, len(prompt.context_ids))


def _check_settings(
    config: ModelConfig, params: SamplingParams, rules: Sequence[Rule], ends: Ends | None
) -> None:
    """Raises `RequestError` for a setting that would have no effect, or none of this model."""
    size = config.vocab_size
    for token in dict(params.logit_bias):
        if token >= size:
            raise RequestError(f"logit_bias names id {token}; this model has {size} tokens")
    num_rules = bool(params.bad_words) + (params.constraint is not None)
    if len(rules) < num_rules or (params.stop and ends is None):
        raise RequestError(
            "stop, bad_words and what the text must match need the model's tokenizer",
            hint="let model.request(...) make the request",
        )
