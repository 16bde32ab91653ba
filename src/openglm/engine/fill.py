"""`Filler`: fills the blanks of one prompt, one token at a time, on a cache of its own.

What is fed, and when, is the `Writer`'s affair; here it goes through a `PagedReader` or `Decoder`,
or every blank through a beam search.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor

from openglm.engine.beam import BeamSettings, beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.reader import reader_for
from openglm.engine.sampling import Choice, Rule, Sampler, likeliest
from openglm.engine.writer import Ends, Step, Writer
from openglm.errors import RequestError
from openglm.model import Transformer


class Filler:
    """Fills the blanks of one prompt.

    Args:
        model: the network.
        prompt: the context.
        params: sampling settings.
        banned_ids: tokens that are only chosen if they end a blank.
        rules: see `Sampler`.
        ends: see `Ends`.

    Raises:
        RequestError: as `Writer`, or beam search for a model without it.
    """

    def __init__(
        self,
        model: Transformer,
        prompt: Prompt,
        params: SamplingParams,
        banned_ids: Collection[int] = (),
        rules: Sequence[Rule] = (),
        ends: Ends | None = None,
    ) -> None:
        if params.num_beams > 1 and prompt.beams is None:
            raise RequestError(
                f"num_beams={params.num_beams}: this model's official code has no beam search",
                hint="leave num_beams out",
            )
        self.model = model
        self.params = params
        self.prompt = prompt
        self.writer = Writer(model.config, prompt, params, banned_ids, rules, ends)
        self._begin()

    @property
    def sampler(self) -> Sampler:
        """Chooses the tokens; its seed repeats them."""
        return self.writer.sampler

    def fork(self, index: int) -> Filler:
        """A filler of its own that has read the same context, before anything is written.

        Args:
            index: of the completion; 0 writes what this one would.
        """
        writer, sampler = self.writer, self.sampler
        other = copy.copy(self)
        other.params = self.params.nth(sampler.seed, index)
        other.writer = Writer(
            writer.config, self.prompt, other.params, writer.banned, sampler.rules, writer.ends
        )
        other.reader = self.reader.copy()
        return other

    def run(self) -> Iterator[Step]:
        """Yields the tokens of all blanks: left to right, in style "refeed" long blanks last."""
        while not self.writer.done:
            if self.passes != self.writer.passes:
                self._begin()
            if self.params.num_beams > 1:
                yield from self._beam()
            else:
                yield from self.writer.write(self._feed()[-1])

    def _begin(self) -> None:
        """Reads the context of the present pass, with room for what follows."""
        num_blanks = len(self.prompt.mask_positions) if self.prompt.style == "grow" else 1
        capacity = num_blanks * (self.params.max_tokens + 1)
        context = torch.tensor([self.writer.context_ids], dtype=torch.int64)
        kind = Decoder if self.params.num_beams > 1 else reader_for(self.model)
        self.reader = kind(self.model, context, capacity, self.prompt.style == "causal")
        self.passes = self.writer.passes

    def _feed(self) -> Tensor:
        """Feeds what is new in the track; returns its logits (T, V) float32."""
        return self.reader.feed(*self.writer.track.rows(self.reader.length))[0]

    def _beam(self) -> Iterator[Step]:
        """Writes one blank as the best hypothesis has it."""
        writer, decoder = self.writer, self.reader
        assert isinstance(decoder, Decoder)
        context = [*writer.context_ids, self.prompt.first_id]
        place, counts_on = writer.position, writer.counts_on
        rows = beam_search(decoder.copy(), [context], [place], self._beam_settings, counts_on)
        tokens = rows[0][0].tokens
        logits = decoder.feed_blank([self.prompt.first_id, *tokens], place, 1, counts_on)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        for row, token in zip(log_probabilities, tokens, strict=False):  # one row is behind all
            top = likeliest(row, self.params.logprobs)
            yield from writer.take(Choice(token, float(row[token]), top))
        if len(tokens) < self.params.max_tokens:
            yield writer.end("stop")

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
            banned_ids=self.writer.banned,
            rule=prompt.beams,
        )
