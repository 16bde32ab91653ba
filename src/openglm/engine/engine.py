"""`Engine`: many requests on one network; they join and leave at every step.

engine = model.engine(memory_bytes=1 << 30)
request = engine.add(*model.request("Once upon a time"))
while engine.has_work:
    for event in engine.step():
        ...

A step packs the new tokens of all requests behind each other into one forward call: a token each
of those that decode, pieces or whole contexts of those that read. Keys and values are in pages of
a memory that is fixed beforehand. What a request writes does not depend on its neighbours.

One thread calls `step`; `add` and `cancel` may come from others, at any time.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openglm.engine.paged_cache import PagedCache, Part, page_bytes, pages_for
from openglm.engine.pages import PagePool
from openglm.engine.params import SamplingParams
from openglm.engine.prompt import Prompt
from openglm.engine.reading import Reading
from openglm.engine.request import Event, Request
from openglm.engine.sampling import Rule
from openglm.engine.scheduler import Chunk, Scheduler
from openglm.engine.speculation import Drafter, LookupDrafter, ModelDrafter
from openglm.engine.writer import Asked, Ends, Step, Writer, most_tokens
from openglm.errors import RequestError
from openglm.model import Transformer

MEMORY_BYTES = 1 << 30
MAX_BATCH_TOKENS = 512
MOST_DRAFTS = 64


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counts for an operator; those of tokens and events are since the start.

    Args:
        running: requests that hold pages.
        waiting: requests that hold none.
        num_pages: all pages.
        free_pages: of them, those that a new request could have.
        num_steps: forward calls.
        num_tokens: fed in them.
        num_prefix_hits: tokens not fed because a prompt before began with the same.
        num_preemptions: how often a request lost its pages.
        num_drafted: guessed tokens that were fed.
        num_accepted: of them, those that were right.
    """

    running: int
    waiting: int
    num_pages: int
    free_pages: int
    num_steps: int
    num_tokens: int
    num_prefix_hits: int
    num_preemptions: int
    num_drafted: int
    num_accepted: int

    @property
    def usage(self) -> float:
        """Share of the pages that a new request could not have, 0 to 1."""
        return 1 - self.free_pages / self.num_pages


class Engine:
    """Continuous batching.

    Args:
        model: the network.
        memory_bytes: of keys and values of all requests together.
        kv_dtype: "auto" (as the network), "float32", "bfloat16", "float16" (on a CPU slow,
            with a warning) or "int8" (a quarter of float32; changes the numbers a little).
        max_batch_tokens: fed per step; longer prompts are read in pieces, or at once where a
            context sees itself whole.
        max_drafts: tokens guessed ahead at most per request and step; 0 = none. Changes speed,
            never what is written.
        draft_model: guesses them, if both networks are causal and have the same vocabulary; None =
            the request's own text is looked up.
        banned_ids: tokens that are only chosen if they end a blank.
        clock: seconds, for deadlines.

    Raises:
        RequestError: a setting out of range, or memory for less than one page.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        memory_bytes: int = MEMORY_BYTES,
        kv_dtype: str = "auto",
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        max_drafts: int = 0,
        draft_model: Transformer | None = None,
        banned_ids: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if max_batch_tokens < 1:
            raise RequestError(f"max_batch_tokens={max_batch_tokens} must be at least 1")
        if not 0 <= max_drafts <= MOST_DRAFTS:
            raise RequestError(f"max_drafts={max_drafts} must be from 0 (none) to {MOST_DRAFTS}")
        if draft_model is not None:
            _check_draft_model(model, draft_model, max_drafts)
        self.model = model
        self.draft_model = draft_model
        self.banned_ids = banned_ids
        self.max_drafts = max_drafts
        self.clock = clock
        self.cache = PagedCache(model, memory_bytes, kv_dtype)
        self.pool = PagePool(self.cache.num_pages)
        # Equal tokens have equal keys if they see only those before, and their position is
        # nothing but their place; ChatGLM-6B's second position is not.
        shares = model.config.is_causal and model.config.position != "rotary_2d"
        self.scheduler = Scheduler(self.pool, self.cache.num_prefix, max_batch_tokens, shares)
        self._requests: dict[int, Request] = {}
        self._arrived: deque[Request] = deque()
        self._ids = itertools.count()
        self._num_steps = self._num_tokens = 0
        self._num_drafted = self._num_accepted = 0

    def add(
        self,
        prompt: Prompt,
        params: SamplingParams,
        rules: Sequence[Rule] = (),
        ends: Ends | None = None,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline: float | None = None,
    ) -> Request:
        """Takes a request in; it begins with the next step.

        Args:
            prompt: what is read.
            params: sampling settings; each request has a sampler and seed of its own.
            rules: see `Sampler`; they remember where a text stands, so no two requests share them.
            ends: see `openglm.engine.writer.Ends`.
            priority: higher goes first; see `openglm.engine.request.HEAD_START`.
            tenant: whose it is; pages are only shared within a tenant.
            deadline: reading of `clock` at which it ends unfinished; None = never.

        Raises:
            RequestError: the model has no room for it, the memory could never hold it, beam
                search, several completions, a setting that lacks its rule, or a priority or
                tenant of the wrong type.
        """
        writer, longest = self._admit(prompt, params, rules, ends)
        return self._enter(writer, self._drafter(longest), priority, tenant, deadline)

    def add_reading(
        self,
        reading: Reading,
        *,
        priority: int = 0,
        tenant: str = "",
        deadline: float | None = None,
    ) -> Request:
        """Like `add`, for what is only read; it ends with "stop" when that is done."""
        self.check_reading(reading)
        return self._enter(reading, LookupDrafter(0), priority, tenant, deadline)

    def check(self, asked: Asked) -> None:
        """Raises what `add` would raise, and takes nothing in."""
        self._admit(*asked)

    def check_reading(self, reading: Reading) -> None:
        """Raises `RequestError` for what the memory could never hold."""
        self._check_memory(len(reading.track))

    def _enter(
        self,
        writer: Writer | Reading,
        drafter: Drafter,
        priority: int,
        tenant: str,
        deadline: float | None,
    ) -> Request:
        """Lets a request in that was admitted."""
        if deadline is not None and not (type(deadline) in (int, float) and deadline == deadline):
            raise RequestError(
                f"deadline={deadline!r} must be a reading of the engine's clock in seconds, or None"
            )
        if type(priority) is not int or not isinstance(tenant, str):
            raise RequestError(
                f"priority={priority!r} must be a whole number, tenant={tenant!r} a text"
            )
        place = (next(self._ids), writer, drafter, priority, tenant, deadline, self._num_steps)
        request = Request(*place)
        self._requests[request.id] = request
        self._arrived.append(request)
        return request

    def _admit(
        self, prompt: Prompt, params: SamplingParams, rules: Sequence[Rule], ends: Ends | None
    ) -> tuple[Writer, int]:
        """The writer of a request, and how many tokens it may come to."""
        if params.num_beams > 1:
            raise RequestError(
                f"num_beams={params.num_beams}: the engine has no beam search",
                hint="call fill or generate, or leave num_beams out",
            )
        if params.num_completions > 1:
            raise RequestError(
                f"n={params.n} and best_of={params.best_of}: a request of the engine writes once",
                hint="call generate_batch, or add one request for each seed",
            )
        writer = Writer(self.model.config, prompt, params, self.banned_ids, rules, ends)
        longest = most_tokens(prompt, params)
        self._check_memory(longest)
        return writer, longest

    def _check_memory(self, longest: int) -> None:
        """Raises `RequestError` for more tokens than fit when nobody else is here."""
        needed = pages_for(self.cache.num_prefix + longest)
        if needed > self.cache.num_pages:
            size = self.cache.page_bytes
            raise RequestError(
                f"the request may become {longest} tokens long, which take "
                f"{needed * size:,} bytes of keys and values; the engine has "
                f"{self.cache.num_pages * size:,}",
                hint="shorten it, lower max_tokens, or give the engine more memory_bytes",
            )

    def _drafter(self, num_tokens: int) -> Drafter:
        """For a request of at most `num_tokens`."""
        if self.draft_model is None:
            return LookupDrafter(self.max_drafts)
        return ModelDrafter(self.draft_model, self.max_drafts, num_tokens)

    def cancel(self, request_id: int) -> bool:
        """Ends a request before it is given another token; False if it has ended already."""
        request = self._requests.get(request_id)
        if request is not None:
            request.is_cancelled = True
        return request is not None

    @property
    def has_work(self) -> bool:
        """Whether a request is unfinished."""
        return bool(self._requests)

    @property
    def statistics(self) -> Statistics:
        """Counts of now."""
        running = sum(request.is_running for request in self.scheduler.line)
        return Statistics(
            running,
            len(self._requests) - running,
            self.pool.num_pages,
            self.pool.num_free,
            self._num_steps,
            self._num_tokens,
            self.scheduler.num_prefix_hits,
            self.scheduler.num_preemptions,
            self._num_drafted,
            self._num_accepted,
        )

    def step(self) -> list[Event]:
        """One forward call; returns what it gave, and which requests ended for other reasons."""
        while self._arrived:
            self.scheduler.add(self._arrived.popleft())
        events = self._end_those_due()
        chunks = self.scheduler.plan()
        if not chunks:
            return events
        logits = self._forward(chunks)
        events += self._end_those_due()
        for chunk, rows in zip(chunks, logits, strict=True):
            if chunk.request.finish_reason is None:
                events += self._take(chunk, rows)
        return events

    def _end_those_due(self) -> list[Event]:
        """Ends what was cancelled, or is past its deadline."""
        now, events = self.clock(), []
        for request in list(self.scheduler.line):
            if request.is_cancelled:
                events.append(self._end(request, "cancelled"))
            elif request.deadline is not None and now >= request.deadline:
                events.append(self._end(request, "deadline"))
        return events

    def _end(self, request: Request, reason: str) -> Event:
        """Ends a request in the middle of a blank."""
        return self._tell(request, Step(request.writer.index, None, 0.0, reason), True)

    def _tell(self, request: Request, step: Step, is_last: bool) -> Event:
        request.steps.append(step)
        if is_last:
            request.finish_reason = step.finish_reason
            self.scheduler.remove(request)
            del self._requests[request.id]
        return Event(request.id, step, is_last)

    @torch.no_grad()
    def _forward(self, chunks: list[Chunk]) -> list[Tensor]:
        """Feeds all chunks at once.

        Returns:
            for each chunk (1 + number of drafts, V) float32 on the CPU: the logits behind its
            track and behind each draft; (0, V) if the track is not read to its end.
        """
        parts: list[Part] = []
        rows: list[Tensor] = []
        wanted: list[int] = []
        counts: list[int] = []
        start = 0
        for chunk in chunks:
            request = chunk.request
            if request.num_prefix < self.cache.num_prefix:
                self.cache.write_prefix(request.pages, request.num_prefix)
                request.num_prefix = self.cache.num_prefix
            fed = _rows(chunk)
            count = fed.shape[1]
            length = request.num_cached + count
            parts.append(Part(count, length, request.writer.visible, request.pages))
            rows.append(fed)
            is_read = chunk.num_tokens == request.num_unread
            counts.append((1 + len(chunk.drafts)) * is_read)
            start += count
            wanted += range(start - counts[-1], start)
        ids, positions, blocks = torch.cat(rows, dim=1).to(self.cache.device)[:, None]  # (1, N)
        hidden = self.model.run(ids, positions, blocks, self.cache.context(parts))
        self._show(chunks, torch.split(hidden[0], [fed.shape[1] for fed in rows]))
        logits = self.model.logits(hidden[0, torch.tensor(wanted, dtype=torch.int64)])
        self._num_steps += 1
        self._num_tokens += start
        return list(torch.split(logits.float().cpu(), counts))

    def _show(self, chunks: list[Chunk], hidden: Sequence[Tensor]) -> None:
        """Gives readings what came out of their tokens, (T, C) for each chunk."""
        for chunk, states in zip(chunks, hidden, strict=True):
            if isinstance(chunk.request.writer, Reading):
                chunk.request.writer.see(chunk.request.num_cached, states, self.model.logits)

    def _take(self, chunk: Chunk, logits: Tensor) -> list[Event]:
        """Chooses tokens from the logits, as long as the drafts turn out right."""
        request, drafts = chunk.request, chunk.drafts
        request.num_cached += chunk.num_tokens
        self.scheduler.remember(request)
        events: list[Event] = []
        accepted = 0
        for row, guess in zip(logits, [*drafts, None], strict=False):  # no logits: no choice
            try:
                steps = request.writer.write(row)
            except Exception as error:  # of this request alone: its rules may be anybody's code
                request.error = error
                return [*events, self._end(request, "error")]
            for step in steps:
                is_last = request.writer.done and step is steps[-1]
                events.append(self._tell(request, step, is_last))
            if steps[0].token is None or steps[0].token != guess:
                break
            accepted += 1
            request.num_cached += 1
            if len(steps) > 1:  # a stop string: what was guessed behind it is not written
                break
        if drafts:
            request.drafter.learn(len(drafts), accepted)
            self._num_drafted += len(drafts)
            self._num_accepted += accepted
        request.follow()
        return events


def memory_for(model: Transformer, asked: Sequence[Asked]) -> int:
    """Bytes that hold all of `asked` together: `MEMORY_BYTES` at most, unless one needs more."""
    return memory_of(model, [most_tokens(request.prompt, request.params) for request in asked])


def memory_of(model: Transformer, lengths: Sequence[int]) -> int:
    """Likewise, of texts with so many tokens, one at least."""
    sizes = [memory_of_one(model, length) for length in lengths]
    return min(sum(sizes), max(MEMORY_BYTES, *sizes))


def memory_of_one(model: Transformer, length: int) -> int:
    """Bytes that hold one text with so many tokens."""
    num_prefix = 0 if model.prefix is None else model.prefix.keys.shape[1]
    return pages_for(num_prefix + length) * page_bytes(model.config, model.dtype)


def finish(engine: Engine, requests: Iterable[Request]) -> None:
    """Steps an engine until nothing is left to do, and raises what ended one of `requests`."""
    while engine.has_work:
        engine.step()
    for request in requests:
        if request.error is not None:
            raise request.error


def follow(engine: Engine, asked: Asked) -> Iterator[Step]:
    """Steps of a request as they come, while all requests of the engine go on.

    It is cancelled if nobody takes them any more, and what ended it early is raised.
    """
    request = engine.add(*asked)
    num_told = 0
    try:
        while request.finish_reason is None:
            engine.step()
            yield from request.steps[num_told:]
            num_told = len(request.steps)
    finally:
        engine.cancel(request.id)
    if request.error is not None:
        raise request.error


def _rows(chunk: Chunk) -> Tensor:
    """Tokens, positions and block positions that a chunk feeds, (3, T) int64."""
    request = chunk.request
    writer, start = request.writer, request.num_cached
    rows = torch.cat(writer.track.rows(start, start + chunk.num_tokens))
    if not chunk.drafts:
        return rows
    assert isinstance(writer, Writer), "nobody guesses what is only read"
    first = len(writer.blank) + 2  # the track ends in token len(blank) + 1 of the blank
    places = [writer.place(number) for number in range(first, first + len(chunk.drafts))]
    drafted = torch.tensor([chunk.drafts, *map(list, zip(*places, strict=True))])
    return torch.cat([rows, drafted], dim=1)


def _check_draft_model(model: Transformer, draft_model: Transformer, max_drafts: int) -> None:
    """Raises `RequestError` for a draft model that could not guess."""
    sizes = draft_model.config.vocab_size, model.config.vocab_size
    if sizes[0] != sizes[1]:
        raise RequestError(
            f"the draft model has {sizes[0]} tokens, the model {sizes[1]}",
            hint="take a smaller model of the same family",
        )
    if not (model.config.is_causal and draft_model.config.is_causal):
        raise RequestError(
            "a draft model guesses for causal models only, and must be one itself",
            hint="leave it out: texts that repeat themselves are guessed without",
        )
    if not max_drafts:
        raise RequestError("draft_model without max_drafts guesses nothing", hint="max_drafts=4")
