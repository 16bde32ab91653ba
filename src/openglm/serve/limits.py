"""How much a key may ask for, and how much may wait in all. One process, one event loop.

    with await limits.admit(identity, tokens=1) as admission:
        ...                                    # its prompt is read
        admission.reserve(len(prompt) + max_tokens)
        ...                                    # waiting
        admission.start()                      # the engine took it up
        admission.spent(prompt_tokens, completion_tokens)  # as often as known

What can at most be used is reserved before, and what was spent is counted after. Leaving the block
awaits nothing, so a request that is cancelled gives back its place whatever the server does
meanwhile.
"""

from __future__ import annotations

import asyncio
import datetime
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from openglm.errors import OpenGLMError
from openglm.log import logger
from openglm.serve.database import Database
from openglm.serve.identity import Identity
from openglm.serve.usage import Count, Place, add_usage, read_usage

Kind = Literal["rate", "concurrency", "tokens", "queue"]
MESSAGES: dict[Kind, str] = {
    "rate": "this key may make {} requests a minute",
    "concurrency": "this key may have {} requests at once",
    "tokens": "this key may use {} tokens a day",
    "queue": "{} requests are waiting already, as many as may",
}
MINUTE_SECONDS = 60.0
SOON_SECONDS = 1.0
"""When to ask again for a place that any request may free at any moment."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """The limits of keys that have none of their own, and of the whole server.

    Args:
        requests_per_minute: within any 60 seconds.
        concurrency: requests of one key at once, waiting or running.
        tokens_per_day: prompts and answers of a day (UTC); None is unlimited.
        queue: requests of all keys that wait for the engine.
    """

    requests_per_minute: int = 60
    concurrency: int = 4
    tokens_per_day: int | None = None
    queue: int = 256


class LimitReached(OpenGLMError):
    """A request above a limit: 429, with when to try again.

    Args:
        kind: which limit.
        limit: its value.
        retry_after: whole seconds, for the header `Retry-After`.
        more: to be told.
    """

    def __init__(self, kind: Kind, limit: int, retry_after: float, more: str = "") -> None:
        self.kind = kind
        self.limit = limit
        self.retry_after = max(1, math.ceil(retry_after))
        message = f"{MESSAGES[kind].format(limit)}{more}"
        super().__init__(message, f"try again in {self.retry_after} s")

    @property
    def is_brief(self) -> bool:
        """Whether a place may be free at any moment."""
        return self.retry_after <= SOON_SECONDS


@dataclass(slots=True)
class _Day:
    """Tokens of a key on one day: counted, and reserved by requests that are not done.

    `most` is what it may use, as the latest request has it; None is unlimited.
    """

    date: datetime.date
    used: int
    reserved: int = 0
    most: int | None = None

    @property
    def left(self) -> int | None:
        """What is not used yet; others may have reserved it. None is unlimited."""
        return None if self.most is None else max(0, self.most - self.used)


@dataclass(slots=True)
class _Account:
    """What a key is doing. Accounts stay: there are as many as keys, which an admin made."""

    times: deque[float] = field(default_factory=deque)  # of requests of the last minute
    active: int = 0
    day: _Day | None = None


class Admission:
    """A request that was let in; a context manager, at whose end its place is free again."""

    def __init__(self, limits: Limits, key_id: str, account: _Account, day: _Day, tokens: int):
        self._limits = limits
        self._key_id = key_id
        self._account = account
        self._day = day
        self._reserved = tokens
        self._count = Count(requests=1)
        self._is_waiting = True
        self._is_open = True
        account.active += 1
        day.reserved += tokens
        limits.waiting += 1

    @property
    def left(self) -> int | None:
        """Tokens of its day that are not used yet; None is unlimited.

        Those that other requests have reserved are among them: what one may do does not depend on
        what else is in work, only when it may.
        """
        return self._day.left

    def reserve(self, tokens: int) -> None:
        """Says how many tokens it can use at most, in all; they are reserved instead of the former.

        Raises:
            LimitReached: its day has not so many left; the request is not counted.
        """
        self._day.reserved -= self._reserved
        self._reserved = 0
        try:
            self._limits._check_tokens(self._day, tokens)
        except LimitReached:
            self._count = Count()
            raise
        self._reserved = tokens
        self._day.reserved += tokens

    def start(self) -> None:
        """Says that the engine took it up: it does not wait any longer."""
        if self._is_waiting:
            self._is_waiting = False
            self._limits.waiting -= 1

    def spent(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Says what was spent so far, in all; only the last word counts."""
        self._count = Count(prompt_tokens, completion_tokens, requests=1)

    def close(self) -> None:
        """Frees the place and counts what was spent, on the day it was let in; once."""
        if not self._is_open:
            return
        self._is_open = False
        self.start()
        self._account.active -= 1
        self._day.reserved -= self._reserved
        self._day.used += self._count.prompt_tokens + self._count.completion_tokens
        self._limits._record((self._key_id, self._day.date), self._count)

    def __enter__(self) -> Admission:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class Limits:
    """Lets requests in, or refuses them at once: nothing here waits for a place.

    Args:
        database: keeps the use of each day.
        settings: for keys without limits of their own.
        clock: monotonic, in seconds.
        now: the wall clock, in seconds since 1970; it decides when a day ends.
    """

    def __init__(
        self,
        database: Database,
        settings: LimitSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings or LimitSettings()
        self.waiting = 0
        self._database = database
        self._clock = clock
        self._now = now
        self._accounts: dict[str, _Account] = {}
        self._unsaved: dict[Place, Count] = {}
        self._saving: asyncio.Task[None] | None = None

    async def admit(self, identity: Identity, tokens: int) -> Admission:
        """Lets a request in.

        Args:
            identity: whose it is.
            tokens: reserved of the key's day until more is known; see `Admission.reserve`. With 0
                it uses none, and is let in on any day.

        Raises:
            LimitReached: the first limit that is in the way; the request counts towards none.
        """
        account = self._accounts.setdefault(identity.key_id, _Account())
        day = await self._today(identity, account)
        # From here on nothing is awaited, so no other request comes between check and entry.
        own = self.settings
        rate = identity.requests_per_minute or own.requests_per_minute
        concurrency = identity.concurrency or own.concurrency
        self.check_queue()
        if account.active >= concurrency:
            raise LimitReached("concurrency", concurrency, SOON_SECONDS)
        self._check_tokens(day, tokens)
        clock = self._clock()
        while account.times and account.times[0] <= clock - MINUTE_SECONDS:
            account.times.popleft()
        if len(account.times) >= rate:
            # Free again when so many have passed that `rate - 1` are left.
            leaves = account.times[len(account.times) - rate]
            raise LimitReached("rate", rate, leaves + MINUTE_SECONDS - clock)
        account.times.append(clock)
        return Admission(self, identity.key_id, account, day, tokens)

    def check_queue(self) -> None:
        """Whether one more may wait for the engine.

        Raises:
            LimitReached: none may.
        """
        if self.waiting >= self.settings.queue:
            raise LimitReached("queue", self.settings.queue, SOON_SECONDS)

    async def admit_later(self, identity: Identity, tokens: int) -> Admission:
        """Lets in what nobody waits for, once its turn has come: only its tokens are limited.

        Args:
            identity: whose it is.
            tokens: see `admit`.

        Raises:
            LimitReached: the day has not so many left.
        """
        account = self._accounts.setdefault(identity.key_id, _Account())
        day = await self._today(identity, account)
        self._check_tokens(day, tokens)
        admission = Admission(self, identity.key_id, _Account(), day, tokens)  # takes no place
        admission.start()
        return admission

    def active(self, key_id: str) -> int:
        """Requests of a key that were let in and are not done."""
        account = self._accounts.get(key_id)
        return account.active if account else 0

    async def close(self) -> None:
        """Waits until the database has all counts."""
        while self._saving is not None:
            await self._saving
        if self._unsaved:  # after a failure: once more
            await self._save()

    async def _today(self, identity: Identity, account: _Account) -> _Day:
        """The key's current day, begun with what an earlier run of the server counted."""
        today = datetime.datetime.fromtimestamp(self._now(), datetime.UTC).date()
        if account.day is None or account.day.date != today:
            place = identity.key_id, today
            saved = await asyncio.to_thread(read_usage, self._database, place)
            if account.day is None or account.day.date != today:  # another may have been faster
                account.day = _Day(today, saved.prompt_tokens + saved.completion_tokens)
        account.day.most = identity.tokens_per_day or self.settings.tokens_per_day
        return account.day

    def _check_tokens(self, day: _Day, tokens: int) -> None:
        if day.most is None or day.left is None or tokens <= max(0, day.left - day.reserved):
            return
        if tokens <= day.left:
            more = "; its other calls may need those that are left"
            raise LimitReached("tokens", day.most, SOON_SECONDS, more)
        more = (
            f", of which {day.left} are left; this call may use {tokens}: shorten it, or lower "
            "max_tokens"
        )
        seconds = self._seconds_of_today_left()
        raise LimitReached("tokens", day.most, seconds, more if day.left else "")

    def _seconds_of_today_left(self) -> float:
        now = datetime.datetime.fromtimestamp(self._now(), datetime.UTC)
        midnight = datetime.datetime.combine(now.date(), datetime.time(), datetime.UTC)
        return (midnight + datetime.timedelta(days=1) - now).total_seconds()

    def _record(self, place: Place, count: Count) -> None:
        self._unsaved.setdefault(place, Count()).add(count)
        if self._saving is None:
            self._saving = asyncio.get_running_loop().create_task(self._save())

    async def _save(self) -> None:
        """Writes counts until there are none; those that come meanwhile share the next write."""
        try:
            while self._unsaved:
                counts, self._unsaved = self._unsaved, {}
                try:
                    await asyncio.to_thread(add_usage, self._database, counts)
                except Exception:
                    logger.exception("the use of keys could not be saved; trying with the next")
                    for place, count in counts.items():
                        self._unsaved.setdefault(place, Count()).add(count)
                    return
        finally:
            self._saving = None
