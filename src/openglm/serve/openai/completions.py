"""POST /v1/completions: texts continued, or filled in between prompt and suffix."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from openglm.errors import RequestError
from openglm.results import TokenLogprob
from openglm.serve.document import answers
from openglm.serve.errors import ServeError, openai_body
from openglm.serve.fields import ignored
from openglm.serve.hosted import Hosted
from openglm.serve.infilling import Gap, can_infill, infill
from openglm.serve.openai.answers import TextCompletion
from openglm.serve.openai.objects import reason, usage
from openglm.serve.openai.requests import CompletionRequest
from openglm.serve.openai.text_logprobs import Offsets, logprobs, start_of
from openglm.serve.runner import Place
from openglm.serve.service import Call, Errand, call
from openglm.serve.wire import DONE, TEXT, Mould, event, new_id
from openglm.serve.writing import Part, Writing

router = APIRouter()


@router.post("/completions", response_model=None, responses=answers(TextCompletion, TextCompletion))
async def completions(body: CompletionRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """Continues texts; with `suffix`, writes what stands between prompt and suffix."""
    texts = await begin(body, call)
    if body.stream:
        return call.stream(_events(call, texts), ignored(body))
    return await call.whole(texts.collect(), ignored(body))


async def begin(body: CompletionRequest, errand: Errand) -> Texts:
    """What will answer.

    Raises:
        OpenGLMError: the call cannot be honoured.
    """
    hosted = errand.models.find(body.model)
    async with errand.entering(hosted):
        writing = await _prepare(hosted, body, errand.place)
        writing.is_bounded = body.max_tokens is not None  # else there are 16, or what is left
        errand.measure(writing, hosted.name)
    return Texts(body, writing)


async def _prepare(hosted: Hosted, body: CompletionRequest, place: Place) -> Writing:
    if not (body.writes or body.echo):
        raise ServeError(
            "invalid_field", "max_tokens=0 writes nothing: only with echo", "max_tokens"
        )
    if body.suffix is None:
        return await hosted.prepare(
            body.prompts,
            "generate",
            body.sampling(),
            place=place,
            prompt_logprobs=body.prompt_logprobs,
            writes=body.writes,
        )
    if body.prompt_logprobs is not None or not body.writes:
        message = "suffix goes with something to write, and with echo or logprobs, not with both"
        raise ServeError("invalid_field", message, "suffix")
    if not can_infill(hosted):
        raise RequestError(
            f"{hosted.name} fills no blanks, so it cannot write in front of a suffix",
            hint="leave suffix out",
        )
    texts = [prompt for prompt in body.prompts if isinstance(prompt, str)]
    if len(texts) < len(body.prompts):
        raise ServeError("invalid_field", "suffix goes with texts, not with token ids", "suffix")
    gaps = [Gap(text, body.suffix) for text in texts]
    return await infill(hosted, gaps, body.sampling(), place)


async def _events(call: Call, texts: Texts) -> AsyncGenerator[bytes, None]:
    try:
        await texts.echo()
        for chunk in texts.echoes():
            yield event(chunk)
        async with aclosing(texts.writing.parts()) as parts:
            async for part in parts:
                for one in texts.events(part):
                    yield one
        if texts.body.wants_usage:
            yield event(texts.frame([]) | usage(texts.writing.usage))
    except Exception as error:
        yield event(openai_body(call.broken_off(error)))
    yield DONE


@dataclass(slots=True)
class Draft:
    """One completion as it grows.

    Args:
        text: so far.
        logprobs: of its tokens, if they were asked for.
        start: where in the text the first of them begins.
        finish_reason: at the end.
    """

    text: str = ""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    start: int = 0
    finish_reason: str | None = None


class Texts:
    """The object that answers a call.

    Args:
        body: the call.
        writing: of its completions.
    """

    def __init__(self, body: CompletionRequest, writing: Writing) -> None:
        self.body = body
        self.writing = writing
        self.id = new_id("cmpl-")
        self.created = int(time.time())
        self.drafts = [Draft() for _ in writing.asked]
        self.offsets = [Offsets() for _ in writing.asked]
        self.moulds: dict[int, list[Mould]] = {}  # of completions, for texts and nothing else

    def frame(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        """The object around choices, whole or of a chunk."""
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.body.model,
            "system_fingerprint": None,
            "choices": choices,
        }

    async def echo(self) -> None:
        """Puts the prompts in front of the completions if they shall be repeated, and scored."""
        scored = await self.writing.score_prompts()
        if not self.body.echo:
            return
        per_prompt = len(self.writing.groups[0])
        for index, draft in enumerate(self.drafts):
            number = index // per_prompt
            asked = self.body.prompts[number]
            written = self.writing.groups[number][0].prompt.fragments[0]
            draft.text = asked if isinstance(asked, str) else written
            if scored:
                draft.logprobs = list(scored[number])
                draft.start = start_of(draft.text, draft.logprobs)
            self.offsets[index] = Offsets(draft.start)

    async def collect(self) -> dict[str, Any]:
        """All completions that were asked for, once they are finished."""
        await self.echo()
        async with aclosing(self.writing.parts()) as parts:
            async for part in parts:
                self._take(part)
        kept = [draft for group in self._groups() for draft in group]
        copied = [draft for draft in kept for _ in range(self.body.copies)]
        choices = [
            self._choice(index, draft, Offsets(draft.start)) for index, draft in enumerate(copied)
        ]
        return self.frame(choices) | usage(self.writing.usage)

    def echoes(self) -> Iterator[dict[str, Any]]:
        """Chunks with the prompts, if they shall be repeated."""
        for index, draft in enumerate(self.drafts):
            if draft.text:
                yield from self._said(index, draft)

    def events(self, part: Part) -> Iterator[bytes]:
        """What a part says."""
        if part.logprobs or part.finish_reason:
            said = Draft(part.text, list(part.logprobs), finish_reason=part.finish_reason)
            return map(event, self._said(part.index, said))
        if part.index not in self.moulds:
            self.moulds[part.index] = [Mould(one) for one in self._said(part.index, Draft(TEXT))]
        return (mould(part.text) for mould in self.moulds[part.index] if part.text)

    def _said(self, index: int, said: Draft) -> Iterator[dict[str, Any]]:
        """Chunks of all choices that stand for completion `index`."""
        choice = self._choice(0, said, self.offsets[index])
        for place in range(index * self.body.copies, (index + 1) * self.body.copies):
            yield self.frame([choice | {"index": place}])

    def _take(self, part: Part) -> None:
        draft = self.drafts[part.index]
        draft.text += part.text
        draft.logprobs += part.logprobs
        draft.finish_reason = part.finish_reason

    def _groups(self) -> Iterator[list[Draft]]:
        """Of each prompt, the completions to give; with `best_of` the likeliest first."""
        start = 0
        for group in self.writing.groups:
            indices = list(range(start, start + len(group)))
            start += len(group)
            if len(group) > (self.body.n or 1):
                indices.sort(key=self._score, reverse=True)
                indices = indices[: self.body.n or 1]
            yield [self.drafts[index] for index in indices]

    def _score(self, index: int) -> float:
        """Mean log-probability."""
        return self.writing.log_probabilities[index] / max(1, self.writing.lengths[index])

    def _choice(self, index: int, said: Draft, offsets: Offsets) -> dict[str, Any]:
        ended = None if said.finish_reason is None else reason(said.finish_reason)
        found = {"index": index, "text": said.text, "finish_reason": ended}
        return found | {"logprobs": logprobs(said.logprobs, offsets)}
