"""From requests to parts of text: all completions of a prompt, as they are written."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import accumulate, chain
from typing import Protocol

from openglm.engine.reading import PromptScores
from openglm.engine.request import Request
from openglm.engine.text_stream import TextStream
from openglm.engine.writer import Asked, Step
from openglm.errors import ContextOverflow
from openglm.results import TokenLogprob
from openglm.serve.reading import read_all
from openglm.serve.runner import EngineRunner, Place
from openglm.transcript import Transcriber


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of one completion.

    Args:
        index: of the completion.
        blank: of the blank in it.
        text: that is certain now; may be empty.
        logprobs: of the tokens since the last part, if they were asked for.
        finish_reason: at the end of a blank, else None; see `Request.finish_reason`.
    """

    index: int
    blank: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ScoredPrompt:
    """A prompt whose own tokens are scored.

    Args:
        ids: its tokens.
        reading: scores those from the second on; None if there is none.
    """

    ids: list[int]
    reading: PromptScores | None


@dataclass(slots=True)
class Usage:
    """Tokens of one call, counted while it runs.

    Args:
        prompt_tokens: read.
        completion_tokens: written, all completions together.
        cached_tokens: of the prompts, those that the engine knew from earlier calls of this key.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def add(self, other: Usage) -> None:
        """Counts what another writing for the same call took."""
        self.prompt_tokens += other.prompt_tokens
        self.completion_tokens += other.completion_tokens
        self.cached_tokens += other.cached_tokens


class Meter(Protocol):
    """Is told how a call goes."""

    def started(self) -> None:
        """The engine has taken it up."""

    def token(self, index: int) -> None:
        """Completion `index` has another token."""

    def finished(self, reason: str) -> None:
        """A completion has ended."""

    def close(self, usage: Usage) -> None:
        """The call has ended, or was left."""


@dataclass(slots=True)
class Writing:
    """One call's completions.

    Args:
        runner: of the model.
        transcriber: of the model.
        groups: for each prompt a request for each of its completions, which are equal but for rules
            and seed. Completions are numbered through.
        special: command tokens are written out.
        place: whose the call is.
        prompts: of each group, if their tokens are scored. Then those that end a completion are
            too, as in OpenAI's and vLLM's: evaluations count on a token behind the prompt.
        writes: completions; else they are empty, and end for their length.
        is_bounded: the client said how long they may be.

    Attributes:
        usage: grows while `parts` is read.
        meter: is told how it goes.
        first: of each prompt's completions: the others read the same pages.
        log_probabilities: of each completion's tokens so far, added up.
        lengths: of each completion, in tokens.
    """

    runner: EngineRunner
    transcriber: Transcriber
    groups: Sequence[Sequence[Asked]]
    special: bool = False
    place: Place = field(default_factory=Place)
    prompts: Sequence[ScoredPrompt] = ()
    writes: bool = True
    is_bounded: bool = True
    usage: Usage = field(default_factory=Usage)
    meter: Meter | None = None
    asked: list[Asked] = field(init=False)
    first: set[int] = field(init=False)
    log_probabilities: list[float] = field(init=False)
    lengths: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.asked = list(chain(*self.groups))
        self.first = set(accumulate(map(len, self.groups[:-1]), initial=0))
        self.log_probabilities = [0.0] * len(self.asked)
        self.lengths = [0] * len(self.asked)
        self.usage.prompt_tokens = sum(prompt_length(group[0]) for group in self.groups)

    def shorten(self, length: int) -> None:
        """Bounds prompt and answer together to so many tokens.

        Raises:
            ContextOverflow: the prompt has them already.
        """
        left = length - self.usage.prompt_tokens
        if left < 1:
            raise ContextOverflow(
                f"max_length={length} leaves no room behind {self.usage.prompt_tokens} tokens"
            )
        self._bound(left)

    def lower(self, tokens: int) -> None:
        """Bounds prompts and answers together to so many tokens, but each blank to one at least."""
        left = tokens - self.usage.prompt_tokens
        self._bound(left // sum(map(num_blanks, self.asked)))

    def _bound(self, most: int) -> None:
        """Bounds each blank; not below what it must have at least."""
        for index, one in enumerate(self.asked):
            least = max(1, one.params.min_tokens)
            bounded = max(least, min(most, one.params.max_tokens))
            params = dataclasses.replace(one.params, max_tokens=bounded)
            self.asked[index] = one._replace(params=params)

    @property
    def most_tokens(self) -> int:
        """What prompts and answers may have together."""
        written = sum(num_blanks(one) * one.params.max_tokens for one in self.asked)
        return self.usage.prompt_tokens + written * self.writes

    async def score_prompts(self) -> list[list[TokenLogprob]]:
        """The tokens of each prompt, to be called before `parts`; of the first we know nothing.

        NaN stands for its log-probability.
        """
        readings = [prompt.reading for prompt in self.prompts if prompt.reading is not None]
        try:
            if readings and self.meter is not None:
                self.meter.started()
            await read_all(self.runner, readings, self.place)
        except BaseException:
            if self.meter is not None:
                self.meter.close(self.usage)
            raise
        return [self._scored(prompt) for prompt in self.prompts]

    def _scored(self, prompt: ScoredPrompt) -> list[TokenLogprob]:
        behind = prompt.reading.steps if prompt.reading is not None else []
        first = [Step(0, token, math.nan) for token in prompt.ids[:1]]
        return [self.transcriber.logprob(step) for step in [*first, *behind]]

    async def parts(self) -> AsyncGenerator[Part, None]:
        """Parts of all completions in the order in which they come; stopping ends all."""
        try:
            if not self.writes:
                for index in range(len(self.asked)):
                    yield Part(index, 0, "", (), "length")
                return
            async with aclosing(self._one(0) if len(self.asked) == 1 else self._all()) as parts:
                async for part in parts:
                    yield part
        finally:
            if self.meter is not None:
                self.meter.close(self.usage)

    async def _all(self) -> AsyncGenerator[Part, None]:
        queue: asyncio.Queue[Part | Exception | None] = asyncio.Queue()

        async def feed(index: int) -> None:
            try:
                async with aclosing(self._one(index)) as parts:
                    async for part in parts:
                        queue.put_nowait(part)
            except Exception as error:
                queue.put_nowait(error)
            else:
                queue.put_nowait(None)

        tasks = [asyncio.create_task(feed(index)) for index in range(len(self.asked))]
        running = len(tasks)
        try:
            while running:
                found = await queue.get()
                if isinstance(found, Exception):
                    raise found
                if found is None:
                    running -= 1
                else:
                    yield found
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _one(self, index: int) -> AsyncGenerator[Part, None]:
        asked = self.asked[index]
        params, text, reason = asked.params, None, "error"
        unsaid: list[TokenLogprob] = []
        requests: list[Request] = []
        async with aclosing(self.runner.write(asked, self.place, requests.append)) as steps:
            async for step in steps:
                if requests and index in self.first:
                    self.usage.cached_tokens += requests.pop().num_hits
                if text is None:
                    text = TextStream(
                        self.transcriber.tokenizer, params.stop, params.min_tokens, self.special
                    )
                place = len(text.text)  # its pieces leave out what `special` writes out
                if step.token is None:
                    if step.end_token is not None and self.prompts:
                        unsaid.append(self.transcriber.logprob(step))
                    text.finish()
                    said, unsaid = tuple(unsaid), []
                    yield Part(index, step.blank, text.text[place:], said, step.finish_reason)
                    reason, text = step.finish_reason or "stop", None
                    continue
                if self.meter is not None:
                    self.meter.token(index)
                text.push(step.token)
                self.usage.completion_tokens += 1
                self.lengths[index] += 1
                self.log_probabilities[index] += step.log_probability
                if params.logprobs is not None:
                    unsaid.append(self.transcriber.logprob(step))
                if piece := text.text[place:]:
                    said, unsaid = tuple(unsaid), []
                    yield Part(index, step.blank, piece, said)
        if self.meter is not None:
            self.meter.finished(reason)


def prompt_length(asked: Asked) -> int:
    """Tokens that a model reads before it writes; that of `sop` is not of the text."""
    return len(asked.prompt.context_ids) + (asked.prompt.style == "causal")


def num_blanks(asked: Asked) -> int:
    """How many texts are written, each of `max_tokens` at most."""
    return len(asked.prompt.mask_positions)
