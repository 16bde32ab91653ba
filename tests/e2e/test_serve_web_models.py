"""Models that come and go while the page is open: who loads them there, and what follows them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the web page needs gradio")
pytest.importorskip("playwright", reason="these tests drive a browser by playwright")

import httpx2
from playwright.sync_api import Browser, Locator, Page, expect

import openglm
from helpers_serve import scripted, serving
from helpers_web import LONGER, needs_browser, reading, session_of
from openglm.language_model import LanguageModel
from openglm.serve.errors import ServeError
from openglm.serve.keys import KeyStore
from openglm.serve.known import Known

SMALL = {"memory_bytes": 1 << 26}


def spare(name: str = "spare") -> Known:
    """A model that fills and writes, and is not loaded."""
    return Known(name=name, read=lambda: openglm.load("mini"), engine=SMALL, loads_at_start=False)


def chatty(folder: Path) -> LanguageModel:
    """A model that chats, and cannot fill."""
    return scripted(folder, lambda conversation: "yes")


@contextmanager
def managing(browser: Browser, models: dict[str, Any]) -> Iterator[Page]:
    """The tab Models as an admin has it."""
    with (
        serving(models, role="admin", web_path="/", engine=SMALL) as (address, key),
        reading(browser, address, key, goes_on=True) as page,
    ):
        open_tab(page, "Models")
        yield page


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def change(page: Page, what: str, model: str) -> None:
    """Chooses a model and presses a button."""
    page.click("#models-which input")
    page.get_by_role("option", name=model, exact=True).click()
    page.click(f"#models-{what}")


def card(page: Page, name: str) -> Locator:
    heading = page.get_by_role("heading", name=name, exact=True)
    return page.locator("#models-cards .card").filter(has=heading)


def chosen(page: Page) -> Locator:
    """The field in which the tab that is open asks for a model."""
    return page.locator("input[aria-label='Model']:visible")


@needs_browser
def test_a_model_comes_and_goes_on_the_page(browser: Browser, tmp_path: Path) -> None:
    """An admin could not load a model here, not use it without a reload, or not be rid of it."""
    models = {"chat": chatty(tmp_path), "spare": spare()}
    with managing(browser, models) as page:
        expect(card(page, "chat")).to_contain_text("Tokens per second")
        expect(card(page, "spare")).to_contain_text("not loaded")
        expect(page.get_by_role("tab", name="Fill")).to_have_count(0)
        change(page, "load", "spare")
        expect(card(page, "spare")).to_contain_text("Tokens per second")
        expect(page.get_by_role("tab", name="Fill")).to_be_visible()
        open_tab(page, "Write")
        chosen(page).click()
        page.get_by_role("option", name="spare").click()
        page.locator("#write-text textarea").fill("Once upon a time")
        page.click("#write-go")
        expect(page.locator("#write-text textarea")).to_have_value(LONGER)
        page.click("#write-stop")
        open_tab(page, "Models")
        change(page, "unload", "spare")
        expect(card(page, "spare")).to_contain_text("not loaded")
        expect(page.get_by_role("tab", name="Fill")).to_have_count(0)
        open_tab(page, "Write")
        expect(page.locator("#write-go")).to_be_visible()
        expect(chosen(page)).to_have_count(0)


@needs_browser
def test_what_was_chosen_stays_while_it_can(browser: Browser) -> None:
    """Each load would put the reader's choice back, or one stay that nobody answers to."""
    with managing(
        browser, {"mini": openglm.load("mini"), "a": spare("a"), "b": spare("b")}
    ) as page:
        change(page, "load", "a")
        expect(card(page, "a")).to_contain_text("Tokens per second")
        open_tab(page, "Write")
        chosen(page).click()
        page.get_by_role("option", name="a", exact=True).click()
        open_tab(page, "Models")
        change(page, "load", "b")
        expect(card(page, "b")).to_contain_text("Tokens per second")
        open_tab(page, "Write")
        expect(chosen(page)).to_have_value("a")
        chosen(page).click()
        expect(page.get_by_role("option")).to_contain_text(["mini", "a", "b"])
        page.keyboard.press("Escape")
        open_tab(page, "Models")
        change(page, "unload", "a")
        expect(card(page, "a")).to_contain_text("not loaded")
        open_tab(page, "Write")
        expect(chosen(page)).to_have_value("mini")


@needs_browser
def test_the_page_is_opened_as_it_is_now(browser: Browser, tmp_path: Path) -> None:
    """What was loaded when the server started would decide what is there, and what is shown how."""
    chat = Known(name="chat", read=lambda: chatty(tmp_path), engine=SMALL, loads_at_start=False)
    with managing(browser, {"mini": openglm.load("mini"), "chat": chat}) as page:
        open_tab(page, "Chat")
        expect(page.locator("#chat-note")).to_contain_text("chat can be loaded")
        open_tab(page, "API")
        expect(page.locator("#api-curl")).to_contain_text("v1/completions")
        open_tab(page, "Models")
        change(page, "load", "chat")
        expect(card(page, "chat")).to_contain_text("Tokens per second")
        open_tab(page, "API")
        expect(page.locator("#api-curl")).to_contain_text("v1/chat/completions")
        for again in (False, True):
            if again:
                page.reload()  # which opens the first tab that is of use
            else:
                open_tab(page, "Chat")
            expect(page.locator("#chat-note")).to_be_hidden()
            page.fill("#chat-asked textarea", "Is it there?")
            page.click("#chat-go")
            expect(page.locator("#chat-turns")).to_contain_text("yes")
        open_tab(page, "Models")
        for name in ("chat", "mini"):
            change(page, "unload", name)
            expect(card(page, name)).to_contain_text("not loaded")
        for name in ("Fill", "Write"):
            expect(page.get_by_role("tab", name=name)).to_have_count(0)
        page.reload()
        expect(card(page, "mini")).to_be_visible()


@needs_browser
def test_a_model_without_room_is_explained(browser: Browser) -> None:
    """The admin would not learn why a model is not loaded."""
    large = spare("large")

    def check() -> None:
        raise ServeError(
            "unavailable", "'large' takes 9.0 GB of memory, and <b>1.0 GB</b> are free"
        )

    large.check = check
    with managing(browser, {"mini": openglm.load("mini"), "large": large}) as page:
        change(page, "load", "large")
        expect(page.get_by_text("9.0 GB of memory, and <b>1.0 GB</b> are free")).to_be_visible()
        expect(card(page, "large")).to_contain_text("not loaded")


@needs_browser
def test_users_see_what_is_loaded_and_change_nothing(browser: Browser) -> None:
    """Anybody with a key could fill the memory, or empty it, with the buttons or without them."""
    made: dict[str, str] = {}

    def admin(keys: KeyStore) -> None:
        made["admin"] = keys.create("admin", "admin")

    models = {"mini": openglm.load("mini"), "spare": spare()}
    with serving(models, with_keys=admin, web_path="/", engine=SMALL) as (address, user):
        with reading(browser, address, user) as page:
            open_tab(page, "Models")
            expect(card(page, "spare")).to_contain_text("not loaded")
            expect(page.locator("#models-load")).to_have_count(0)
        for what, name in (("load", "spare"), ("unload", "mini")):
            assert "role admin" in press(address, user, f"models-{what}", name)
        headers = {"Authorization": f"Bearer {user}"}
        listed = httpx2.get(f"{address}/v1/models", headers=headers).json()["data"]
        assert [one["id"] for one in listed] == ["mini"]
        assert "role admin" not in press(address, made["admin"], "models-load", "spare")
        assert (
            httpx2.get(f"{address}/v1/models/spare", headers=headers).json()["status"] == "loaded"
        )


def press(address: str, key: str, button: str, value: str) -> str:
    """Sends what the page sends when a button is pressed; what is answered."""
    with httpx2.Client(base_url=f"{address}/en", headers=session_of(address, key)) as client:
        config = client.get("/config").json()
        found = (one["id"] for one in config["components"] if one["props"].get("elem_id") == button)
        target = [next(found), "click"]
        event = next(one for one in config["dependencies"] if target in one["targets"])
        sent = {"data": [value], "fn_index": event["id"], "session_hash": "by-hand"}
        client.post("/gradio_api/queue/join", json=sent).raise_for_status()
        path = "/gradio_api/queue/data?session_hash=by-hand"
        with client.stream("GET", path, timeout=60) as response:
            told = (json.loads(line[6:]) for line in response.iter_lines() if line)
            done = next(each for each in told if each["msg"] == "process_completed")
        return json.dumps(done["output"])
