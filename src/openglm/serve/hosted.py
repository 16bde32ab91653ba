"""`Hosted`: a model with its engine, and the calls that it is in the middle of."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from openglm.chat import Message, has_format
from openglm.chat.streaming import WITH_PARTS
from openglm.engine.conventions import convention
from openglm.engine.embedding import MeanState, mean_state
from openglm.engine.prompt import CANONICAL_MASK, ids_of
from openglm.engine.reading import prompt_scores
from openglm.errors import ContextOverflow
from openglm.language_model import LanguageModel
from openglm.serve.runner import EngineRunner, Place
from openglm.serve.writing import ScoredPrompt, Writing
from openglm.transcript import Transcriber

LONGEST_TOKEN_BYTES = 16
"""Of a text, on average: languages and programs have 2 to 5. What is longer than a context of such
tokens is refused unread, since tokenising megabytes takes many seconds."""


@dataclass(slots=True)
class Hosted:
    """One model with its engine.

    Args:
        name: as clients ask for it.
        model: the model.
        runner: of its engine.
        created: seconds since 1970 at which it was loaded.

    Attributes:
        num_calls: that are in work.
    """

    name: str
    model: LanguageModel
    runner: EngineRunner
    created: int = field(default_factory=lambda: int(time.time()))
    transcriber: Transcriber = field(init=False)
    num_calls: int = field(default=0, init=False)
    _idle: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        self.transcriber = Transcriber(self.model.tokenizer)
        self._idle.set()

    def enter(self) -> None:
        """Begins a call: the model stays until as many calls have left."""
        self.num_calls += 1
        self._idle.clear()

    def leave(self) -> None:
        """Ends a call."""
        self.num_calls -= 1
        if not self.num_calls:
            self._idle.set()

    async def until_idle(self) -> None:
        """Waits until no call is in work."""
        await self._idle.wait()

    @property
    def kind(self) -> str:
        """Of the tokenizer."""
        return self.model.tokenizer.kind

    @property
    def can_chat(self) -> bool:
        """Whether it answers conversations."""
        return has_format(self.model.tokenizer)

    @property
    def can_call_tools(self) -> bool:
        """Whether it was trained to."""
        return self.kind in WITH_PARTS

    @property
    def can_fill(self) -> bool:
        """Whether it fills blanks."""
        return convention(self.model.tokenizer).style != "causal"

    @property
    def blank(self) -> str:
        """How a blank in the middle of a text is written."""
        texts = [mask.text for mask in self.model.tokenizer.special.mask_tokens]
        return "[sMASK]" if "[sMASK]" in texts else CANONICAL_MASK

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.max_position_embeddings

    def check_length(self, texts: Iterable[str]) -> None:
        """Refuses texts that are too long to be tokenised; cheap.

        Raises:
            ContextOverflow: together they cannot have room.
        """
        size = sum(len(text.encode(errors="surrogatepass")) for text in texts)
        most = self.context_length * LONGEST_TOKEN_BYTES
        if size > most:
            raise ContextOverflow(
                f"the prompt has {size:,} bytes; {self.name} has {self.context_length} positions, "
                f"for which at most {most:,} bytes are read",
                hint="shorten it",
            )

    async def prepare(
        self,
        every: Sequence[str | list[int] | list[Message]],
        task: str,
        sampling: Mapping[str, Any],
        *,
        place: Place,
        opening: str = "",
        prompt_logprobs: int | None = None,
        writes: bool = True,
    ) -> Writing:
        """A call that is ready to be written; checks all of it.

        Args:
            every: texts (or their token ids) or conversations, each to be answered `n` (or
                `best_of`) times.
            task: see `LanguageModel.request`.
            sampling: settings; `max_tokens` is lowered to what there is room for.
            place: whose it is.
            opening: see `LanguageModel.request`.
            prompt_logprobs: score the prompts' own tokens, with so many alternatives.
            writes: anything behind the prompts.

        Raises:
            RequestError: it cannot be honoured.
            ContextOverflow: there is no room for it.
        """
        for asked in every:
            self.check_length(_texts(asked))
        ask = self.model.requests
        # Long texts and grammars take seconds: not in the event loop.
        found = await asyncio.to_thread(
            lambda: [ask(asked, task, opening=opening, fits=True, **sampling) for asked in every]
        )
        engine = self.runner.engine  # all is checked before the response has begun
        for requests in found if writes or prompt_logprobs is None else ():
            engine.check(requests[0])
        prompts = []
        if prompt_logprobs is not None:
            prompts = await asyncio.to_thread(self._scores, every, prompt_logprobs)
        for prompt in prompts:
            if prompt.reading is not None:
                engine.check_reading(prompt.reading)
        return Writing(
            self.runner,
            self.transcriber,
            found,
            task == "chat",
            place,
            prompts,
            writes,
            is_bounded="max_tokens" in sampling,
        )

    async def vectors(self, texts: Sequence[str]) -> list[MeanState]:
        """Readings of texts, from which their vectors come; checks all of it.

        Raises:
            RequestError: a text cannot be read.
            ContextOverflow: one is too long.
        """
        for text in texts:
            self.check_length([text])
        tokenizer, config = self.model.tokenizer, self.model.config
        readings = await asyncio.to_thread(
            lambda: [mean_state(tokenizer, config, text) for text in texts]
        )
        for reading in readings:
            self.runner.engine.check_reading(reading)
        return readings

    def _scores(self, every: Sequence[object], top: int) -> list[ScoredPrompt]:
        """Prompts whose tokens are to be scored, with `top` alternatives each."""
        tokenizer, config = self.model.tokenizer, self.model.config
        found = []
        for asked in every:
            ids, _ = ids_of(tokenizer, asked)
            reading = prompt_scores(tokenizer, config, ids, top) if len(ids) > 1 else None
            found.append(ScoredPrompt(ids, reading))
        return found


def _texts(asked: str | list[int] | list[Message]) -> Iterator[str]:
    """All texts of a prompt; ids are tokenised already."""
    if isinstance(asked, str):
        yield asked
        return
    for message in asked:
        if isinstance(message, Message):
            yield from (message.content, message.metadata)
            if message.tools is not None:
                yield json.dumps(message.tools)
