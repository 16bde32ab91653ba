"""`Transcriber`: from the steps of a request to blanks with their text, up to a stop string."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

from openglm.engine.fill import Filler
from openglm.engine.params import SamplingParams
from openglm.engine.text_stream import TextStream
from openglm.engine.writer import Step
from openglm.errors import RequestError
from openglm.results import Blank, Piece, TokenLogprob
from openglm.tokenizers import Tokenizer

Result = tuple[list[Blank], int]
"""The blanks of a text, and the seed that repeats them."""


class Transcriber:
    """Writes down what was chosen.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return self.tokenizer.spellings()

    def results(self, filler: Filler, special: bool = False) -> list[Result]:
        """The `n` results of a filler, which is used up."""
        params = filler.params
        count = params.num_completions
        fillers = [filler] if count == 1 else map(filler.fork, range(count))
        return kept(
            [(self.blanks(one.run(), params, special), one.sampler.seed) for one in fillers], params
        )

    def blanks(
        self, steps: Iterable[Step], params: SamplingParams, special: bool = False
    ) -> list[Blank]:
        """All blanks of one request, left to right.

        Args:
            steps: of the request.
            params: its settings.
            special: command tokens are written out; see `TextStream`.
        """
        blanks: dict[int, Blank] = {}
        tokens: list[Step] = []
        for step, _, text in self.pieces(steps, params, special):
            if step.token is not None:
                tokens.append(step)
                continue
            ids = [step.token for step in tokens if step.token is not None]
            mean = math.fsum(s.log_probability for s in tokens) / len(ids) if ids else math.nan
            scored = None if params.logprobs is None else tuple(map(self.logprob, tokens))
            reason = step.finish_reason or "stop"
            blanks[step.blank] = Blank(text.text, ids, mean, reason, scored)
            tokens = []
        return [blanks[index] for index in sorted(blanks)]

    def pieces(
        self, steps: Iterable[Step], params: SamplingParams, special: bool = False
    ) -> Iterator[tuple[Step, str, TextStream]]:
        """Each step, the piece that it made certain, and all text of its blank."""
        text = None
        for step in steps:
            if text is None:
                text = TextStream(self.tokenizer, params.stop, params.min_tokens, special)
            if step.token is None:
                yield step, text.finish(), text
                text = None
            else:
                yield step, text.push(step.token), text

    def stream(
        self, steps: Iterable[Step], params: SamplingParams, special: bool = False
    ) -> Iterator[Piece]:
        """The text as it comes; a stream has one result and nothing but its text.

        Args:
            steps: of the request.
            params: its settings.
            special: see `TextStream`.

        Raises:
            RequestError: several results or log-probabilities were asked for.
        """
        for name, off in (("n", 1), ("best_of", None), ("logprobs", None)):
            value = getattr(params, name)
            if value != off:
                raise RequestError(
                    f"{name}={value}: a stream gives the text of one result",
                    hint="ask without streaming; on the command line, with --json",
                )
        pieces = self.pieces(steps, params, special)
        return (Piece(step.blank, piece) for step, piece, _ in pieces if piece)

    def logprob(self, step: Step) -> TokenLogprob:
        """What is reported of a token, which may be one that ended a blank."""
        chosen = step.end_token if step.token is None else step.token
        assert chosen is not None
        spelt = [
            TokenLogprob(token, *self._spell(token), log_probability)
            for token, log_probability in ((chosen, step.log_probability), *step.top)
        ]
        return dataclasses.replace(spelt[0], top=tuple(spelt[1:]))

    def _spell(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of a token; a command token is written out, a padding row is empty."""
        spellings = self.spellings
        command = self.tokenizer.command_texts.get(token, "").encode()
        raw = command or (spellings[token] if token < len(spellings) else b"")
        return raw.decode("utf-8", errors="replace"), raw


def kept(results: Sequence[Result], params: SamplingParams) -> list[Result]:
    """Those of the written results that are returned: with `best_of` the best first."""
    if params.num_completions == params.n:
        return list(results)
    ranked = sorted(results, key=lambda result: _mean_log_probability(result[0]), reverse=True)
    return ranked[: params.n]


def _mean_log_probability(blanks: list[Blank]) -> float:
    """Over all tokens of a result; -inf without any."""
    count = sum(len(blank.token_ids) for blank in blanks)
    total = math.fsum(b.log_probability * len(b.token_ids) for b in blanks if b.token_ids)
    return total / count if count else -math.inf
