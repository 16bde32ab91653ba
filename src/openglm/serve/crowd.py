"""`Crowd`: what would have to wait behind a full queue is turned away unread.

With hundreds of refusals a second their cost is felt by those who are being answered: one event
loop does both. To route a call, read its body and check its fields takes most of that.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.serve.errors import PROMPT_FIELDS
from openglm.serve.limits import LimitReached, Limits

PREFIXES = ("/v1/", "/api/paas/v4/")


class Crowd:
    """The middleware; routes ask for a place all the same.

    Args:
        app: that answers.
        limits: of the server, once it has begun.
        refuse: makes the answer from scope and error.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Callable[[], Limits],
        refuse: Callable[[Scope, LimitReached], Response],
    ) -> None:
        self.app = app
        self.limits = limits
        self.refuse = refuse
        self.paths = frozenset(prefix + name for prefix in PREFIXES for name in PROMPT_FIELDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a call on, or answers it."""
        if scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in self.paths:
            try:
                self.limits().check_queue()
            except LimitReached as error:
                await self.refuse(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
