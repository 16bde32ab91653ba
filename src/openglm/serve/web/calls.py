"""Calls of the models that come from the page: the same limits and counts as over HTTP."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape

import gradio as gr
from starlette.concurrency import run_in_threadpool

from openglm.log import logger
from openglm.serve.errors import as_serve_error
from openglm.serve.hosted import Hosted
from openglm.serve.identity import Identity
from openglm.serve.keys import KeyStore
from openglm.serve.service import Call, Service, call_of
from openglm.serve.web.fields import Wish
from openglm.serve.web.form import Say

SHOWN_SECONDS = 0.05
"""How often at most a text on the page is renewed; each time it is sent whole."""


@dataclass(frozen=True, slots=True)
class Desk:
    """What every tab works with.

    Args:
        service: whose models are called.
        keys: who may.
        say: chooses the language of texts.
    """

    service: Service
    keys: KeyStore
    say: Say

    def names(self, fits: Callable[[Hosted], bool] | None = None) -> list[str]:
        """All models, loaded or not, the default first; or those loaded that are of some sort."""
        models = self.service.models
        if fits is None:
            return list(models.known)
        return [name for name, one in models.hosted.items() if fits(one)]

    async def who(self, request: gr.Request) -> Identity:
        """Whose session a request belongs to.

        Raises:
            AuthenticationFailed: the key was revoked.
        """
        return await run_in_threadpool(self.keys.identity, str(request.username))

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
        assert request.request is not None  # Gradio makes some without, in its tests
        try:
            call = call_of(self.service, await self.who(request), request.request)
            hosted = call.models.find(wish.model)
            try:
                async with call.entering(hosted):
                    yield call, hosted
            finally:
                call.leave()
        except Exception as error:
            raise shown(error) from error


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
