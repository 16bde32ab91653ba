"""`Writer`: from the steps of a `Filler` to blanks with their text, ended by stop strings."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from functools import cached_property

from openglm.engine.fill import Filler, Step
from openglm.engine.text_stream import TextStream
from openglm.results import Blank, TokenLogprob
from openglm.tokenizers import Tokenizer


class Writer:
    """Writes down what fillers choose.

    Args:
        tokenizer: of the model.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    @cached_property
    def spellings(self) -> list[bytes]:
        """See `Tokenizer.spellings`."""
        return self.tokenizer.spellings()

    def results(self, filler: Filler, special: bool = False) -> list[tuple[list[Blank], int]]:
        """The blanks of each of `n` results, and the seed that repeats it."""
        params = filler.params
        count = params.num_completions
        fillers = [filler] if count == 1 else map(filler.fork, range(count))
        done = [(self._blanks(one, special), one.sampler.seed) for one in fillers]
        if count > params.n:
            done.sort(key=lambda result: _mean_log_probability(result[0]), reverse=True)
        return done[: params.n]

    def _blanks(self, filler: Filler, special: bool) -> list[Blank]:
        blanks: dict[int, Blank] = {}
        tokens: list[Step] = []
        for step, _, text in self.steps(filler, special):
            if step.token is not None:
                tokens.append(step)
                continue
            ids = [step.token for step in tokens if step.token is not None]
            mean = math.fsum(s.log_probability for s in tokens) / len(ids) if ids else math.nan
            asked = filler.params.logprobs is not None
            scored = tuple(map(self._logprob, tokens)) if asked else None
            reason = step.finish_reason or "stop"
            blanks[step.blank] = Blank(text.text, ids, mean, reason, scored)
            tokens = []
        return [blanks[index] for index in sorted(blanks)]

    def _logprob(self, step: Step) -> TokenLogprob:
        assert step.token is not None
        spelt = [
            TokenLogprob(token, *self._spell(token), log_probability)
            for token, log_probability in ((step.token, step.log_probability), *step.top)
        ]
        return dataclasses.replace(spelt[0], top=tuple(spelt[1:]))

    def _spell(self, token: int) -> tuple[str, bytes]:
        """Text and bytes of a token; a command token is written out, a padding row is empty."""
        spellings = self.spellings
        command = self.tokenizer.command_texts.get(token, "").encode()
        raw = command or (spellings[token] if token < len(spellings) else b"")
        return raw.decode("utf-8", errors="replace"), raw

    def steps(
        self, filler: Filler, special: bool = False
    ) -> Iterator[tuple[Step, str, TextStream]]:
        """Each step, the text that it made certain, and all text of its blank."""
        params = filler.params
        text = None
        for step in filler.run():
            if text is None:
                text = TextStream(self.tokenizer, params.stop, params.min_tokens, special)
            if step.token is None:
                yield step, text.finish(), text
                text = None
                continue
            piece = text.push(step.token)
            if text.is_stopped:
                filler.end_blank()
            yield step, piece, text


def _mean_log_probability(blanks: list[Blank]) -> float:
    """Over all tokens of a result; -inf without any."""
    count = sum(len(blank.token_ids) for blank in blanks)
    total = math.fsum(b.log_probability * len(b.token_ids) for b in blanks if b.token_ids)
    return total / count if count else -math.inf
