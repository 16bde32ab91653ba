"""Filling blanks left to right in one growing cache.

After the context, each blank is fed as `sop` and its tokens at the position of its mask token,
with block positions 1, 2, ... . `eop` or `eos` ends a blank and is not fed; the next blank sees
the earlier ones (GLM paper, section 2.1).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from openglm.engine.beam import beam_search
from openglm.engine.decoder import Decoder
from openglm.engine.prompt import Prompt
from openglm.engine.sampling import Sampler, SamplingParams
from openglm.errors import RequestError
from openglm.model import Transformer
from openglm.tokenizers import SpecialTokens


@dataclass(frozen=True, slots=True)
class Step:
    """One event of filling: a token of a blank, or the end of it.

    Args:
        blank: index of the blank.
        token: the token; None for the end.
        log_probability: of the token (of the end token where there was one), under the model.
        finish_reason: "stop" or "length" at the end of a blank, else None.
    """

    blank: int
    token: int | None
    log_probability: float
    finish_reason: str | None = None


class Filler:
    """Fills the blanks of one prompt.

    Args:
        model: the network.
        special: its command tokens.
        prompt: the context.
        params: sampling settings.
        num_text_tokens: of the tokenizer; what lies beyond is only chosen if it ends a blank.

    Raises:
        RequestError: the context or a blank does not fit the model's position tables.
    """

    def __init__(
        self,
        model: Transformer,
        special: SpecialTokens,
        prompt: Prompt,
        params: SamplingParams,
        num_text_tokens: int,
    ) -> None:
        limit = model.config.max_position_embeddings
        if params.max_tokens >= limit:
            raise RequestError(
                f"max_tokens={params.max_tokens} must be below {limit}, the positions of this model"
            )
        self.params = params
        self.special = special
        self.prompt = prompt
        beyond = range(num_text_tokens, model.config.vocab_size)
        self.banned = sorted({*special.ids, *beyond} - special.end_ids)
        self.sampler = Sampler(params, sorted(special.end_ids), self.banned)
        capacity = len(prompt.mask_positions) * (params.max_tokens + 1)
        self.decoder = Decoder(model, torch.tensor([prompt.context_ids]), capacity)

    def run(self) -> Iterator[Step]:
        """Yields the tokens of all blanks, left to right."""
        fill = self._sample if self.params.num_beams == 1 else self._beam
        for index, position in enumerate(self.prompt.mask_positions):
            yield from fill(index, position)

    def _sample(self, index: int, position: int) -> Iterator[Step]:
        blank: list[int] = []
        last = self.special.sop_id
        while len(blank) < self.params.max_tokens:
            logits = self.decoder.feed_blank([last], position, len(blank) + 1)[-1]
            token, log_probability = self.sampler.choose(logits, blank)
            if token in self.special.end_ids:
                yield Step(index, None, log_probability, "stop")
                return
            blank.append(token)
            last = token
            yield Step(index, token, log_probability)
        self.decoder.feed_blank([last], position, len(blank) + 1)  # later blanks see it too
        yield Step(index, None, 0.0, "length")

    def _beam(self, index: int, position: int) -> Iterator[Step]:
        params = self.params
        before = self.decoder.cache
        self.decoder.cache = before.copy()
        best = beam_search(
            self.decoder,
            [position],
            sop_id=self.special.sop_id,
            end_ids=self.special.end_ids,
            num_beams=params.num_beams,
            max_tokens=params.max_tokens,
            length_penalty=params.length_penalty,
            no_repeat_ngram_size=params.no_repeat_ngram_size,
            min_tokens=params.min_tokens,
            banned_ids=self.banned,
        )[0]
        self.decoder.cache = before
        logits = self.decoder.feed_blank([self.special.sop_id, *best.tokens], position, 1)
        log_probabilities = torch.log_softmax(logits, dim=-1)
        for place, token in enumerate(best.tokens):
            yield Step(index, token, float(log_probabilities[place, token]))
        full = len(best.tokens) == params.max_tokens
        yield Step(index, None, 0.0, "length" if full else "stop")
