"""Talking to a server: one client, statuses in words, patience."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import TypeVar

import httpx2

from openglm import __version__
from openglm.errors import DownloadError, UsageError

T = TypeVar("T")
TIMEOUT = httpx2.Timeout(30.0, connect=10.0)
"""Seconds without a byte, and for a connection."""
RETRIES = 5
"""How often in a row a request may fail without one new byte."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 60.0
"""Pauses double from the first; a server may ask for one up to the longest."""
ELSEWHERE = (
    "check the network and HTTPS_PROXY; or try a mirror (HF_ENDPOINT or --endpoint URL), the other "
    "hub (--hub), or a folder copied from elsewhere (--from DIR)"
)

sleep = time.sleep


class TransientError(Exception):
    """A failure that may pass: a dropped connection, a busy server.

    Args:
        reason: in words.
        pause_s: what the server asked for, if it did.
        moved: new bytes came before it failed, so that the count of failures starts again.
    """

    def __init__(self, reason: str, pause_s: float | None = None, moved: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.pause_s = pause_s
        self.moved = moved


def address(named: str) -> str:
    """The address of a server without a final slash; `UsageError` if it is none."""
    try:
        url = httpx2.URL(named)
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("https", "http") or not url.host:
        raise UsageError(f"{named!r} is no address of a server", hint="https://HOST")
    return named.rstrip("/")


@cache
def _certificates() -> ssl.SSLContext:
    """Those of the system, read once: it takes 30 ms."""
    return httpx2.create_ssl_context()


def open_client() -> httpx2.Client:
    """A client that follows redirects (dropping the login at another host) and knows the proxy."""
    return httpx2.Client(
        follow_redirects=True,
        timeout=TIMEOUT,
        verify=_certificates(),
        headers={"User-Agent": f"openglm/{__version__}", "Accept-Encoding": "identity"},
    )


def patiently(
    action: Callable[[], T],
    endpoint: str,
    on_retry: Callable[[str, float], None],
    retries: int = RETRIES,
) -> T:
    """Runs `action` again after transient failures, with growing pauses.

    Args:
        action: what may raise `TransientError`.
        endpoint: the server, for the message.
        on_retry: told the reason and the seconds until the next try.
        retries: how many failures in a row are borne.

    Raises:
        DownloadError: it failed more often.
    """
    failures = 0
    while True:
        try:
            return action()
        except TransientError as error:
            failures = 1 if error.moved else failures + 1
            if failures > retries:
                raise DownloadError(
                    f"{endpoint} cannot be reached: {error.reason}", hint=ELSEWHERE
                ) from error
            pause = FIRST_PAUSE_S * 2 ** (failures - 1) if error.pause_s is None else error.pause_s
            pause = min(pause, LONGEST_PAUSE_S)
            on_retry(error.reason, pause)
            sleep(pause)


def lost(error: httpx2.RequestError, moved: bool = False) -> TransientError:
    """A request that failed on its way as a `TransientError`."""
    words = str(error) or "the connection broke"
    return TransientError(f"{type(error).__name__}: {words}", moved=moved)


def check_status(status: int, headers: Mapping[str, str], what: str, login: str) -> None:
    """Returns for a success.

    Args:
        status: of the response.
        headers: of the response.
        what: was asked for.
        login: how to log in at this hub.

    Raises:
        TransientError: the server is busy.
        DownloadError: it does not have it or does not give it.
    """
    if status < 400:
        return
    if status in (408, 429) or status >= 500:
        asked = headers.get("Retry-After", "")
        raise TransientError(f"HTTP {status}", float(asked) if asked.isdigit() else None)
    if status in (401, 403):
        raise DownloadError(f"{what}: access refused (HTTP {status})", hint=login)
    if status == 404:
        raise DownloadError(f"{what} does not exist (HTTP 404)", hint="check name and revision")
    raise DownloadError(f"{what}: HTTP {status}")
