"""`Door`: an ASGI application before the locked API that lets people in to the page by their key.

It takes only the paths of the page; every other request goes on to the lock of the API. Of the page
nobody sees anything but the form without a session. A session stands for a key and ends with it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from urllib.parse import parse_qs

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openglm.errors import ConfigError
from openglm.serve.identity import AuthenticationFailed, Identity
from openglm.serve.keys import KeyStore
from openglm.serve.record import record_of
from openglm.serve.service import Service
from openglm.serve.web.dressing import FORM_POLICY, REFERRER, dress
from openglm.serve.web.form import LANGUAGES, log_in_form, preferred
from openglm.serve.web.payload import again, is_free_of_files, read_body
from openglm.serve.web.sessions import SECONDS, Sessions

COOKIE = "openglm_session"
WEB_PATH = re.compile(r"/|(/[A-Za-z0-9_-]+)+/?")
WANTED = re.compile(
    r"|config|theme\.css"
    r"|(assets|static)/[A-Za-z0-9_./-]+"
    r"|gradio_api/(info|cancel|reset|startup-events|queue/join|queue/data)"
)
"""The paths that the page asks for. Gradio has more: for files, uploads, a proxy; it needs none."""
CALL = "/gradio_api/queue/join"
MAX_CALL_BYTES = 4_000_000
"""With all conversations that a browser keeps."""
MAX_FORM_BYTES = 4096
UNSTORED = {"Cache-Control": "no-store"}
OF_PAGES = {**UNSTORED, **REFERRER}
FORGETTING = {**UNSTORED, "Clear-Site-Data": '"storage"'}
"""What the browser kept goes, too; browsers heed that over TLS and on loopback."""

Build = Callable[[Service, KeyStore, str], AbstractAsyncContextManager[ASGIApp]]
"""Makes the page of service, keys and path; it is shown while the context is open."""


class Door:
    """See the module.

    Args:
        app: where all other requests go.
        keys: that open it.
        build: makes the page.
        path: of the page, e.g. "/" or "/web".

    Attributes:
        sessions: of those who are in.
        page: what they see, while the server runs.

    Raises:
        ConfigError: the path is malformed.
    """

    def __init__(self, app: ASGIApp, keys: KeyStore, build: Build, path: str = "/") -> None:
        if not WEB_PATH.fullmatch(path):
            raise ConfigError(f"{path!r} is no path for the page", hint="like / or /web")
        self.app = app
        self.keys = keys
        self._build = build
        self.root = f"{path.rstrip('/')}/"
        self._cookie_path = self.root.rstrip("/") or "/"  # of the page without the last slash, too
        self.sessions = Sessions()
        self.page: ASGIApp | None = None

    @asynccontextmanager
    async def opened(self, service: Service) -> AsyncGenerator[None, None]:
        """Shows the page while the block runs."""
        async with self._build(service, self.keys, self.root) as self.page:
            yield
        self.page = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers what is asked of the page, and passes on the rest."""
        rest = self._place(scope)
        if rest is None or self.page is None:
            await self.app(scope, receive, send)
            return
        request = Request(scope, receive)
        response: ASGIApp
        if rest == "login" and request.method != "POST":
            response = RedirectResponse(self.root, 303)
        elif rest == "login":
            response = await self._log_in(request)
        else:
            identity = await self._who(request)
            if identity is not None:
                record_of(scope).key_id = identity.key_id
            if identity is None:
                response = self._refuse(request, rest)
            elif rest == "logout":
                response = self._log_out(request)
            elif not rest:
                response = RedirectResponse(self.root + _language(request) + "/", 303)
            elif WANTED.fullmatch(rest.partition("/")[2]) and ".." not in rest:
                response = self._show(rest, identity)
            else:
                response = PlainTextResponse("not found", 404)
        await response(scope, receive, send)

    def _show(self, rest: str, identity: Identity) -> ASGIApp:
        """The page itself, which is told who sees it."""
        assert self.page is not None
        page = dress(self.page)

        async def shown(scope: Scope, receive: Receive, send: Send) -> None:
            if rest.endswith(CALL):
                body = await read_body(Request(scope, receive), MAX_CALL_BYTES)
                if body is None or not is_free_of_files(body):
                    await PlainTextResponse("refused", 400)(scope, receive, send)
                    return
                receive = again(body, receive)
            await page({**scope, "openglm.key_id": identity.key_id}, receive, send)

        return shown

    def _place(self, scope: Scope) -> str | None:
        """Which place of the page is asked for; None if it is none of the page's."""
        if scope["type"] != "http" or not f"{scope['path']}/".startswith(self.root):
            return None
        rest: str = scope["path"][len(self.root) :]
        reads = scope["method"] in ("GET", "HEAD")
        if rest in ("login", "logout"):
            return rest if scope["method"] == "POST" or (reads and rest == "login") else None
        if not rest:
            return rest if reads else None
        language, slash, _ = rest.partition("/")
        return rest if language in LANGUAGES and slash else None

    async def _who(self, request: Request) -> Identity | None:
        """Whose session a request belongs to, if the key is still good."""
        key_id = self.sessions.find(request.cookies.get(COOKIE, ""))
        if key_id is None:
            return None
        try:
            return await run_in_threadpool(self.keys.identity, key_id)
        except AuthenticationFailed:
            return None

    def _refuse(self, request: Request, rest: str) -> Response:
        """The answer to a stranger: the form where a page is asked for."""
        if rest and rest.rstrip("/") not in LANGUAGES:
            return PlainTextResponse("log in first", 401)
        return self._form(request, 401)

    def _form(self, request: Request, status: int, is_refused: bool = False) -> Response:
        html = log_in_form(f"{self.root}login", _language(request), is_refused)
        return HTMLResponse(html, status, {"Content-Security-Policy": FORM_POLICY, **OF_PAGES})

    async def _log_in(self, request: Request) -> Response:
        try:
            key = await _sent_key(request)
            if key.count(".") != 1:  # a token ends soon, a session does not
                raise AuthenticationFailed("malformed")
            identity = await run_in_threadpool(self.keys.verify, key)
        except AuthenticationFailed:
            return self._form(request, 401, is_refused=True)
        response = RedirectResponse(self.root, 303, UNSTORED)
        response.set_cookie(
            COOKIE,
            self.sessions.begin(identity.key_id),
            max_age=int(SECONDS),
            path=self._cookie_path,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return response

    def _log_out(self, request: Request) -> Response:
        self.sessions.end(request.cookies[COOKIE])
        response = RedirectResponse(self.root, 303, FORGETTING)
        response.delete_cookie(COOKIE, path=self._cookie_path, httponly=True, samesite="strict")
        return response


def _language(request: Request) -> str:
    return preferred(request.headers.get("accept-language", ""))


async def _sent_key(request: Request) -> str:
    """The key in a form."""
    body = await read_body(request, MAX_FORM_BYTES)
    if body is None:
        raise AuthenticationFailed("malformed")
    fields = parse_qs(body.decode("ascii", "replace"), max_num_fields=4)
    return fields.get("key", [""])[0].strip()
