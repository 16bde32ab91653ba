"""`Scheduler`: which tokens of which requests the next step feeds, and who holds the memory.

All requests stand in one line by rank. A step goes along it and gives each its share of the token
budget and the pages that it needs. A request that lacks pages takes them from the last in the
line: a victim forgets its keys and values, keeps its tokens, and reads them again later. It never
takes from one before it, so the first can always go on, and the line always moves.
"""

from __future__ import annotations

import bisect
from collections import Counter
from dataclasses import dataclass, field

from openglm.engine.paged_cache import pages_for
from openglm.engine.pages import PagePool, page_key, root_key
from openglm.engine.reading import Reading
from openglm.engine.request import Request
from openglm.kernels.paged_attention import PAGE_TOKENS


@dataclass(frozen=True, slots=True)
class Chunk:
    """What one request feeds in a step.

    Args:
        request: whose.
        num_tokens: of its track, from the first that is not cached.
        drafts: guesses of what follows, if all of the track is fed.
    """

    request: Request
    num_tokens: int
    drafts: list[int] = field(default_factory=list)


class Scheduler:
    """Plans the steps of an engine.

    Args:
        pool: the pages.
        num_prefix: tokens of a trained prefix in front of each sequence.
        max_batch_tokens: token budget of a step. A context that must be read at once is read
            even if it is longer.
        shares_prefixes: whether equal beginnings have equal keys: not if later tokens are seen.

    Attributes:
        line: all requests, in the order of their ranks.
        num_preemptions: how often a request lost its pages.
        num_prefix_hits: tokens that a request never read because their pages were found; those of
            its own that it finds again after a preemption do not count.
    """

    def __init__(
        self, pool: PagePool, num_prefix: int, max_batch_tokens: int, shares_prefixes: bool
    ) -> None:
        self.pool = pool
        self.num_prefix = num_prefix
        self.max_batch_tokens = max_batch_tokens
        self.shares_prefixes = shares_prefixes
        self.line: list[Request] = []
        self.num_preemptions = 0
        self.num_prefix_hits = 0

    def add(self, request: Request) -> None:
        """Lets a request stand in line."""
        bisect.insort(self.line, request, key=lambda other: other.rank)

    def remove(self, request: Request) -> None:
        """Takes a request out of the line; its pages are free again."""
        self.line.remove(request)
        self.pool.release(request.forget())

    def plan(self) -> list[Chunk]:
        """What to feed next; the requests hold the pages for it."""
        chunks: list[Chunk] = []
        left = self.max_batch_tokens
        behind = sum(request.is_decoding for request in self.line)
        is_open = True  # for requests that wait: nobody overtakes one that finds no room
        for place, request in enumerate(self.line):
            behind -= request.is_decoding
            if left <= 0:
                break
            waits = not request.is_running
            if waits and not is_open:
                continue
            if waits:
                self._share(request)
            count = self._portion(request, left, behind, chunks)
            if count and self._reserve(place, len(chunks) * waits):
                drafts = self._drafts(request, left - behind - 1) if request.is_decoding else []
                chunks.append(Chunk(request, count, drafts))
                left -= count + len(drafts)
                hits = max(0, request.num_cached - request.num_read) * waits
                request.num_hits += hits
                self.num_prefix_hits += hits
            elif waits:
                self.pool.release(request.forget())
                is_open = False
        return chunks

    def remember(self, request: Request) -> None:
        """Names the pages that have become full, so that others find them."""
        if not self._shares(request):
            return
        full = (self.num_prefix + request.num_cached) // PAGE_TOKENS
        for index in range(len(request.keys), full):
            key = self._key(request, index)
            request.keys.append(key)
            self.pool.remember(request.pages[index], key)

    def _share(self, request: Request) -> None:
        """Takes the pages that others have already filled with the same tokens.

        The last token is always read: the next is chosen from what comes out behind it. Of a
        reading all tokens are, for the same reason.
        """
        if not self._shares(request) or isinstance(request.writer, Reading):
            return
        for index in range((self.num_prefix + len(request.writer.track) - 1) // PAGE_TOKENS):
            key = self._key(request, index)
            page = self.pool.find(key)
            if page is None:
                break
            request.pages.append(page)
            request.keys.append(key)
        slots = len(request.pages) * PAGE_TOKENS
        request.num_prefix = min(slots, self.num_prefix)
        request.num_cached = slots - request.num_prefix

    def _shares(self, request: Request) -> bool:
        """A text that sees itself whole is not shared, whatever the network could do."""
        return self.shares_prefixes and request.writer.visible == 0

    def _key(self, request: Request, index: int) -> bytes:
        """The name of a request's page; the trained prefix is the same for all."""
        before = request.keys[index - 1] if index else root_key(request.tenant)
        start, end = (max(PAGE_TOKENS * (index + i) - self.num_prefix, 0) for i in (0, 1))
        return page_key(before, request.writer.track.tokens[start:end])

    def _portion(self, request: Request, left: int, behind: int, chunks: list[Chunk]) -> int:
        """How many tokens a request feeds: one, a piece, or a context that must not be cut.

        Reading in pieces leaves one token to each request that decodes behind it, but never stops;
        a context that is read whole may take the step for itself.
        """
        unread = request.num_unread
        if unread == 1:
            return 1
        if request.num_cached < request.writer.visible:
            others_read = any(chunk.num_tokens > 1 for chunk in chunks)
            return 0 if unread > left and others_read else unread
        return min(unread, max(left - behind, min(left, PAGE_TOKENS)))

    def _reserve(self, place: int, spare: int) -> bool:
        """Gets the pages for all tokens of a request's track, if there is room.

        Args:
            place: of the request in the line.
            spare: pages that must stay free besides, one for each request before a new one: else
                their next token would throw it out again.
        """
        request = self.line[place]
        slots = self.num_prefix + len(request.writer.track)
        lacking = pages_for(slots) - len(request.pages)
        if lacking > 0 and not self._make_room(place, lacking + spare):
            return False
        request.pages += [self.pool.take() for _ in range(lacking)]
        return True

    def _make_room(self, place: int, num_pages: int) -> bool:
        """Takes pages from requests behind `place`, last first, if that is enough."""
        behind = [request for request in self.line[place + 1 :] if request.is_running]
        held = Counter(page for request in behind for page in request.pages)
        to_have = sum(self.pool.references[page] == count for page, count in held.items())
        if self.pool.num_free + to_have < num_pages:
            return False
        while self.pool.num_free < num_pages:
            victim = behind.pop()
            victim.num_read = max(victim.num_read, victim.num_cached)
            self.pool.release(victim.forget())
            self.num_preemptions += 1
        return True

    def _drafts(self, request: Request, budget: int) -> list[int]:
        """Guesses of what follows, as far as budget, pages and blank allow."""
        writer = request.writer
        free = len(request.pages) * PAGE_TOKENS - self.num_prefix - len(writer.track)
        limit = min(budget, free, writer.num_left - 1)
        return request.drafter.propose(writer.track.tokens, writer.passes, limit)
