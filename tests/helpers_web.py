"""The web page in a browser, behind its log-in. Whoever imports this needs playwright."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
from playwright.sync_api import Browser, Page, expect

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed (Debian: apt install chromium)"
)
expect.set_options(timeout=30_000)
LONGER = re.compile(".{30,}", re.DOTALL)  # than what it began with


@contextmanager
def reading(
    browser: Browser, address: str, key: str, goes_on: bool = False, **settings: Any
) -> Iterator[Page]:
    """The page behind the log-in; at the end no request went elsewhere, and no script failed.

    A reader who goes on to another page breaks off what still runs, of which scripts complain.
    """
    context = browser.new_context(**{"locale": "en-US", **settings})
    context.set_default_timeout(30_000)
    page = context.new_page()
    asked, problems = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto(address)  # to the form, of whose status 401 the console speaks
    page.on("console", lambda told: problems.append(told.text) if told.type == "error" else None)
    page.fill("#key", key)
    page.click("button")
    expect(page.locator("#top")).to_be_visible(timeout=60_000)
    try:
        yield page
    finally:
        context.close()  # else the server waits for it
    own = urlsplit(address).netloc
    foreign = [url for url in asked if urlsplit(url).netloc not in ("", own)]
    assert len(asked) > 5
    assert not foreign
    assert goes_on or not problems


def log_in(address: str, key: str) -> httpx2.Response:
    """The answer to the form."""
    return httpx2.post(f"{address}/login", data={"key": key})


def session_of(address: str, key: str) -> dict[str, str]:
    """The header of somebody who is in."""
    return {"Cookie": log_in(address, key).headers["set-cookie"].partition(";")[0]}
