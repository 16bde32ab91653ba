"""`dress`: Gradio's pages without what they would fetch from elsewhere, under a strict policy.

Gradio needs scripts that stand in its page, which get a nonce of one response, and styles in
attributes. Everything else comes from this server, and nothing may be evaluated.
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

FORM_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
PAGE_POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'self'; frame-ancestors 'none'"
)
REFERRER = {"Referrer-Policy": "same-origin"}
"""With no-referrer, browsers send the origin "null" with forms, and the guard refuses that."""
ICON = (
    '<link rel="icon" href="data:image/svg+xml,'
    "%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath fill='%232563eb' "
    "d='M1 2h5v2H3v8h3v2H1zM15 2h-5v2h3v8h-3v2h5z'/%3E%3C/svg%3E\">"
)
"""Brackets, as around a blank."""
THEME = """<script>
(() => {
  const here = new URL(location), name = "__theme";
  if (here.searchParams.has(name)) localStorage.setItem(name, here.searchParams.get(name));
  else if (localStorage.getItem(name)) {
    here.searchParams.set(name, localStorage.getItem(name));
    history.replaceState(null, "", here);
  }
})();
</script>"""
"""Gradio takes light or dark from its address; this remembers the choice for other addresses."""
SCRIPT = re.compile(rb"<script\b")
FOREIGN = re.compile(
    rb"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>|<link\s+rel=\"manifest\"[^>]*>"
)
"""What Gradio tells to other sites' previews, and a manifest outside of the page's path."""


def dress(app: ASGIApp) -> ASGIApp:
    """The same application with pages as the module says."""

    async def dressed(scope: Scope, receive: Receive, send: Send) -> None:
        wearing = _Dressing(send)
        await app(scope, receive, wearing.send)

    return dressed


class _Dressing:
    """One response; pages are held back until they are whole, everything else passes."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message | None = None
        self._body = b""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = MutableHeaders(scope=message).get("content-type", "")
            if kind.startswith("text/html"):
                self._start = message
                return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._finish(self._start)

    async def _finish(self, start: Message) -> None:
        nonce = secrets.token_urlsafe(16)
        body = FOREIGN.sub(b"", self._body)
        body = body.replace(b"</head>", f"{ICON}{THEME}</head>".encode(), 1)
        body = SCRIPT.sub(b'<script nonce="%s"' % nonce.encode(), body)
        headers = MutableHeaders(scope=start)
        headers["Content-Length"] = str(len(body))
        headers["Content-Security-Policy"] = PAGE_POLICY.format(nonce=nonce)
        headers["Cache-Control"] = "no-store"
        headers.update(REFERRER)
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})
