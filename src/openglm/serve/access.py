"""Every route asks for a key, except those listed here; the server checks that when it starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

from fastapi import Depends, Security
from fastapi.routing import iter_route_contexts
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.errors import ConfigError
from openglm.serve.identity import AuthenticationFailed, Identity, NotPermitted
from openglm.serve.keys import KeyStore
from openglm.serve.record import record_of

PUBLIC = frozenset({"/health"})
"""Paths that anybody may read; they tell nothing but that a server is here."""


_documented = HTTPBearer(
    scheme_name="key", description="`ID.SECRET`, or a token signed with it", auto_error=False
)
"""Puts the header into the OpenAPI document; its own reading, too narrow for us, is not used."""


class Locked:
    """Answers strangers before anything of what they send is read, whatever path they name.

    Routes ask for the key themselves (`require_key`); but a framework reads a body first.

    Args:
        app: what is locked.
        keys: that open it.
        refuse: makes the answer from scope and error.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: KeyStore,
        refuse: Callable[[Scope, AuthenticationFailed], Response],
    ) -> None:
        self.app = app
        self.keys = keys
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request of somebody known on."""
        if scope["type"] == "websocket":  # there are none
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] == "http" and scope["path"] not in PUBLIC:
            try:
                found = await identify(self.keys, Headers(scope=scope).getlist("authorization"))
                record_of(scope).key_id = found.key_id
            except AuthenticationFailed as error:
                await self.refuse(scope, error)(scope, receive, send)
                return
        await self.app(scope, receive, send)


async def identify(keys: KeyStore, sent: Sequence[str]) -> Identity:
    """The key behind the `Authorization` headers of a request."""
    if len(sent) > 1:  # two parties could each look at another one
        raise AuthenticationFailed("malformed")
    authorization = sent[0] if sent else None
    identity = keys.cached(authorization)
    return identity if identity else await run_in_threadpool(keys.verify, authorization)


async def require_key(request: Request, _: Annotated[object, Security(_documented)]) -> Identity:
    """The key behind a request: a dependency of every route. `app.state.keys` holds the keys.

    Raises:
        AuthenticationFailed: nobody's.
    """
    return await identify(request.app.state.keys, request.headers.getlist("authorization"))


async def require_admin(identity: Annotated[Identity, Depends(require_key)]) -> Identity:
    """The key behind a request that manages the server.

    Raises:
        AuthenticationFailed: nobody's.
        NotPermitted: that of a user.
    """
    if identity.role != "admin":
        raise NotPermitted
    return identity


def check_routes(routes: Sequence[BaseRoute], public: frozenset[str] = PUBLIC) -> None:
    """Checks that every route asks for a key, those of included routers and mounted apps too.

    Args:
        routes: of the app.
        public: paths that need not. A mounted app that guards itself is listed with its path and a
            slash at the end, e.g. "/page/".

    Raises:
        ConfigError: one does not.
    """
    open_ = sorted(set(_paths_without_key(routes, "", public)))
    if open_:
        raise ConfigError(f"these routes ask for no key: {', '.join(open_)}")


def _paths_without_key(
    routes: Sequence[BaseRoute], prefix: str, public: frozenset[str]
) -> Iterator[str]:
    for route in iter_route_contexts(routes):
        if isinstance(route.original_route, Mount):
            mount = f"{prefix}{route.path}"
            if f"{mount}/" in public:
                continue
            inner = route.original_route.routes
            if inner:
                yield from _paths_without_key(inner, mount, public)
            else:  # an application that shows no routes
                yield f"{mount}/"
        elif f"{prefix}{route.path}" not in public and not _asks_for_key(route):
            yield f"{prefix}{route.path}"


def _asks_for_key(route: Any) -> bool:
    """Whether `require_key` is among the dependencies of a route, or theirs."""
    waiting = [getattr(route, "dependant", None)]
    while waiting:
        dependant = waiting.pop()
        if dependant is None:
            continue
        if dependant.call is require_key:
            return True
        waiting += dependant.dependencies
    return False
