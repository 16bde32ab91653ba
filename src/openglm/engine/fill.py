"""Filling blanks, one token at a time.

GLM fills all blanks left to right in one growing cache. After the context, each blank is fed as
`sop` and its tokens at the position of its mask token, with block positions 1, 2, ... . `eop` or
`eos` ends a blank and is not fed; the next blank sees the earlier ones (GLM paper, section 2.1).

GLM-130B and ChatGLM-6B read the text again for each blank. A causal model's continuation is a blank
at the end.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch

from openglm.config import ModelConfig
from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.sampling import Rule, Sampler, likeliest
from openglm.errors import RequestError
from openglm.model import Transformer


@dataclass(frozen=True, slots=True)
class Step:
    """One event of filling: a token of a blank, or the end of it.

    Args:
        blank: index of the blank.
        token: the token; None for the end.
        log_probability: of the token (of the end token where there was one), under the model.
        finish_reason: "stop" or "length" at the end of a blank, else None.
        top: ids and log-probabilities of the likeliest tokens, if they were asked for.
    """

    blank: int
    token: int | None
    log_probability: float
    finish_reason: str | None = None
    top: tuple[tuple[int, float], ...] = ()


class Filler:
    """Fills the blanks of one prompt.

    Args:
        model: the network.
        prompt: the context.
        params: sampling settings.
        banned_ids: tokens that are only chosen if they end a blank.
        rules: see `Sampler`.

    Raises:
        RequestError: the context or a blank does not fit the model's positions, or beam search for
            a model without it.
    """

    def __init__(
        self,
        model: Transformer,
        prompt: Prompt,
        params: SamplingParams,
        banned_ids: Collection[int] = (),
        rules: Sequence[Rule] = (),
    ) -> None:
        room = self.room(model.config, prompt)
        if params.num_beams > 1 and prompt.beams is None:
            raise RequestError(
                f"num_beams={params.num_beams}: this model's official code has no beam search",
                hint="leave num_beams out",
            )
        positions = f"this model has {model.config.max_position_embeddings} positions"
        if room < 1:
            raise RequestError(
                f"the prompt of {len(prompt.context_ids) + 1} tokens leaves no room: {positions}",
                hint="shorten it",
            )
        if params.max_tokens > room:
            raise RequestError(
                f"max_tokens={params.max_tokens} must be at most {room} here: {positions}"
            )
        self.model = model
        self.params = params
        self.prompt = prompt
        self.banned = sorted(set(banned_ids) - prompt.end_ids)
        self.sampler = Sampler(params, sorted(prompt.end_ids), self.banned, rules)
        self.decoder = self._read(prompt.context_ids)
        self.is_blank_over = False

    def fork(self, index: int) -> Filler:
        """A filler of its own that has read the same context, before anything is written.

        Args:
            index: added to the seed, as vLLM does; 0 writes what this one would.
        """
        other = copy.copy(self)
        seed = (self.sampler.seed + index) % 2**64
        params = dataclasses.replace(self.params, seed=seed)
        sampler = self.sampler
        other.sampler = Sampler(params, sampler.end_ids, sampler.banned_ids, sampler.rules)
        other.decoder = copy.copy(self.decoder)
        other.decoder.cache = self.decoder.cache.copy()
        return other

    def end_blank(self) -> None:
        """Ends the present blank behind the token that `run` gave last: a stop string was found."""
        self.is_blank_over = True

    @staticmethod
    def room(config: ModelConfig, prompt: Prompt) -> int:
        """How long each blank may be; GLM has positions of their own for blanks.

        In style "refeed" the last of k blanks stands behind the context with k - 1 masks replaced.
        """
        limit = config.max_position_embeddings
        if prompt.style == "grow":
            return limit - 1
        num_blanks = len(prompt.mask_positions)
        return (limit - len(prompt.context_ids) - 2 + num_blanks) // num_blanks

    def run(self) -> Iterator[Step]:
        """Yields the tokens of all blanks: left to right, in style "refeed" long blanks last."""
        if self.prompt.style == "refeed":
            yield from self._passes()
            return
        for index, position in enumerate(self.prompt.mask_positions):
            yield from self._write(index, position, self.prompt.style == "causal")

    def _read(self, context_ids: list[int]) -> Decoder:
        """A decoder that has read the context, with room for what follows."""
        self.read_ids = context_ids
        num_blanks = len(self.prompt.mask_positions) if self.prompt.style == "grow" else 1
        capacity = num_blanks * (self.params.max_tokens + 1)
        context = torch.tensor([context_ids], dtype=torch.int64)
        return Decoder(self.model, context, capacity, self.prompt.style == "causal")

    def _passes(self) -> Iterator[Step]:
        """One pass per blank; each reads the text with the earlier ones filled in (GLM-130B).

        Positions behind a long blank count on in a model that has no block positions.
        """
        ids = list(self.prompt.context_ids)
        places = dict(enumerate(self.prompt.mask_positions))
        order = sorted(places, key=lambda blank: ids[places[blank]] == self.prompt.long_id)
        for number, blank in enumerate(order):
            place = places[blank]
            if number:
                self.decoder = self._read(ids)
            is_long = ids[place] == self.prompt.long_id
            counts_on = is_long and self.model.config.position == "rotary"
            written = []
            for step in self._write(blank, len(ids) - 1 if counts_on else place, counts_on):
                if step.token is not None:
                    written.append(step.token)
                yield step
            ids[place : place + 1] = written
            for other in places:
                if places[other] > place:
                    places[other] += len(written) - 1

    def _write(self, index: int, position: int, counts_on: bool) -> Iterator[Step]:
        write = self._beam if self.params.num_beams > 1 else self._sample
        return write(index, position, counts_on)

    def _sample(self, index: int, position: int, counts_on: bool) -> Iterator[Step]:
        blank: list[int] = []
        last = self.prompt.first_id
        while len(blank) < self.params.max_tokens:
            logits = self.decoder.feed_blank([last], position, len(blank) + 1, counts_on)[-1]
            choice = self.sampler.choose(logits, blank)
            if choice.token in self.prompt.end_ids:
                yield Step(index, None, choice.log_probability, "stop")
                return
            last = choice.token
            blank.append(last)
            yield Step(index, last, choice.log_probability, top=choice.top)
            if self.is_blank_over:
                break
        if self.prompt.style == "grow":  # later blanks see it too
            self.decoder.feed_blank([last], position, len(blank) + 1, counts_on)
        yield Step(index, None, 0.0, "stop" if self.is_blank_over else "length")
        self.is_blank_over = False

    def _beam(self, index: int, position: int, counts_on: bool) -> Iterator[Step]:
        before = self.decoder.cache
        self.decoder.cache = before.copy()
        context = [*self.read_ids, self.prompt.first_id]
        best = beam_search(self.decoder, [context], [position], self._beam_settings, counts_on)[0][
            0
        ]
        self.decoder.cache = before
        tokens = [self.prompt.first_id, *best.tokens]
        logits = self.decoder.feed_blank(tokens, position, 1, counts_on)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        for place, token in enumerate(best.tokens):
            row = log_probabilities[place]
            yield Step(index, token, float(row[token]), top=likeliest(row, self.params.logprobs))
        full = len(best.tokens) == self.params.max_tokens
        yield Step(index, None, 0.0, "length" if full else "stop")

    @property
    def _beam_settings(self) -> BeamSettings:
        params, prompt = self.params, self.prompt
        assert prompt.beams is not None
        return BeamSettings(
            num_beams=params.num_beams,
            max_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            no_repeat_ngram_size=params.no_repeat_ngram_size,
            min_tokens=params.min_tokens,
            end_ids=prompt.end_ids,
            banned_ids=self.banned,
            rule=prompt.beams,
        )
