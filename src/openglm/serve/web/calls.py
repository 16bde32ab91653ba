"""Calls of the models that come from the page: the same limits and counts as over HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import escape

import gradio as gr
from starlette.concurrency import run_in_threadpool

from openglm.log import logger
from openglm.serve.errors import as_serve_error
from openglm.serve.hosted import Hosted
from openglm.serve.identity import Identity, NotPermitted
from openglm.serve.keys import KeyStore
from openglm.serve.service import Call, Service, call_of
from openglm.serve.web.fields import Wish
from openglm.serve.web.form import Say
from openglm.serve.web.renewal import Renewal

SHOWN_SECONDS = 0.05
"""How often at most a text on the page is renewed; each time it is sent whole."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every tab works with.

    Args:
        service: whose models are called.
        keys: who may.
        say: chooses the language of texts.
        renewal: of what follows which models are loaded.
    """

    service: Service
    keys: KeyStore
    say: Say
    renewal: Renewal = field(default_factory=Renewal)

    @property
    def chats(self) -> list[str]:
        """Models that are loaded and chat, the default first."""
        return [name for name, one in self.service.models.hosted.items() if one.can_chat]

    @property
    def fills(self) -> list[str]:
        """Models that are loaded and fill blanks, the default first."""
        return [name for name, one in self.service.models.hosted.items() if one.can_fill]

    @property
    def writes(self) -> list[str]:
        """Models that are loaded, the default first: all of them write."""
        return list(self.service.models.hosted)

    @property
    def absent(self) -> list[str]:
        """Models that are not loaded."""
        return [name for name in self.service.models.known if name not in self.writes]

    async def who(self, request: gr.Request) -> Identity:
        """Whose session a request belongs to.

        Raises:
            AuthenticationFailed: the key was revoked.
        """
        return await run_in_threadpool(self.keys.identity, str(request.username))

    async def admin(self, request: gr.Request) -> Identity:
        """Whose session a request that manages the server belongs to.

        Raises:
            AuthenticationFailed: the key was revoked.
            NotPermitted: it is that of a user.
        """
        identity = await self.who(request)
        if identity.role != "admin":
            raise NotPermitted
        return identity

    @asynccontextmanager
    async def calling(
        self, request: gr.Request, wish: Wish
    ) -> AsyncGenerator[tuple[Call, Hosted], None]:
        """A call with its place among those of its key, and its model.

        Args:
            request: of the page.
            wish: what the fields of a tab say.

        Raises:
            gr.Error: whatever goes wrong; the page shows it.
        """
        try:
            call = self._call(request, await self.who(request))
            hosted = call.models.find(wish.model)
            try:
                async with call.entering(hosted):
                    yield call, hosted
            finally:
                call.leave()
        except Exception as error:
            raise shown(error) from error

    @asynccontextmanager
    async def managing(self, request: gr.Request) -> AsyncGenerator[Call, None]:
        """A call that manages the models, with its place among those of its key, an admin's.

        Args:
            request: of the page.

        Raises:
            gr.Error: whatever goes wrong; the page shows it.
        """
        try:
            call = self._call(request, await self.admin(request))
            async with call.visiting():
                yield call
        except Exception as error:
            raise shown(error) from error

    def _call(self, request: gr.Request, identity: Identity) -> Call:
        assert request.request is not None  # Gradio makes some without, in its tests
        return call_of(self.service, identity, request.request)


def shown(error: Exception) -> gr.Error:
    """What the page says about an error."""
    found = as_serve_error(error)
    if found.kind == "internal":
        logger.error("a call from the page failed", exc_info=error)
    return gr.Error(escape(str(found)), print_exception=False)  # the page shows it as HTML


class Pace:
    """Lets a text be shown every now and then."""

    def __init__(self) -> None:
        self._next = 0.0

    def is_due(self) -> bool:
        """Whether to show it now."""
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + SHOWN_SECONDS
        return True
