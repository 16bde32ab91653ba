"""The page: its tabs, once in each language, as an ASGI application behind the door."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from html import escape
from pathlib import Path

import gradio as gr
from fastapi import FastAPI, Request
from starlette.types import ASGIApp

from openglm.serve.keys import KeyStore
from openglm.serve.service import Service
from openglm.serve.web import api, chat, fill, models, write
from openglm.serve.web.calls import Desk
from openglm.serve.web.fields import QUIET, html_field
from openglm.serve.web.form import LANGUAGES, chooser

NAMES = {"en": "English", "zh": "中文"}
FONTS = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "sans-serif"]
MONOSPACE = ["ui-monospace", "SFMono-Regular", "Noto Sans Mono", "monospace"]
"""Of the reader's own machine: nothing is fetched."""
POLL_SECONDS = 0.05
"""How soon a click is seen. Gradio looks a thousand times a second, on the page in each language
and whether anybody has it open, in the event loop that sends every token."""
CSS = Path(__file__).with_name("page.css")


@asynccontextmanager
async def web_page(service: Service, keys: KeyStore, root: str) -> AsyncGenerator[ASGIApp, None]:
    """The application while the block runs: ROOT/en/ and ROOT/zh/.

    Args:
        service: whose models it shows.
        keys: of those who see it.
        root: its path, with a slash at the end.
    """
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    css = CSS.read_text(encoding="utf-8")
    for language in LANGUAGES:
        gr.mount_gradio_app(
            app,
            _blocks(Desk(service, keys, chooser(language)), language, root),
            f"{root}{language}",
            auth_dependency=_who,
            footer_links=[],
            run_history=False,
            show_error=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            theme=_theme(),
            css=css,
        )
    async with app.router.lifespan_context(app):
        yield app


def _who(request: Request) -> str | None:
    """The id of the key, from the door; without the door nobody is let in."""
    found: str | None = request.scope.get("openglm.key_id")
    return found


def _theme() -> gr.themes.Base:
    """Gradio's own, with greys that are dark enough to read."""
    theme = gr.themes.Default(
        primary_hue="blue", neutral_hue="slate", font=FONTS, font_mono=MONOSPACE
    )
    return theme.set(
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def _blocks(desk: Desk, language: str, root: str) -> gr.Blocks:
    """The page in one language."""
    say = desk.say
    first = _first(desk)
    with gr.Blocks(fill_width=True, title="openglm", analytics_enabled=False) as blocks:
        top = html_field(_top(desk, language, root))
        desk.renewal.show(top, lambda _: _top(desk, language, root))
        with gr.Tabs(selected=first, overflow_behavior="wrap") as tabs:
            with gr.Tab(say("Chat", "对话"), id="chat"):
                chat.build(desk, blocks)
            with gr.Tab(say("Fill", "填空"), id="fill"):
                fill.build(desk)
            with gr.Tab(say("Write", "写作"), id="write"):
                write.build(desk)
            with gr.Tab(label := say("Models", "模型"), id="models"):
                changes = models.build(desk, blocks, tabs, label)
            with gr.Tab("API", id="api"):
                api.build(desk, blocks)
        opened = desk.renewal.follow(blocks.load)
        # Not where nothing has changed: the reader may have chosen a tab by then.
        opened.then(
            lambda: gr.skip() if (now := _first(desk)) == first else gr.update(selected=now),
            None,
            tabs,
            **QUIET,
        )
        for change in changes:
            desk.renewal.follow(change.then)
    # Limits decide how many calls run, not the queue of the page.
    blocks.queue(default_concurrency_limit=None, api_open=False)
    blocks._queue.sleep_when_free = POLL_SECONDS
    found: gr.Blocks = blocks
    return found


def _first(desk: Desk) -> str:
    """The tab that is open at first."""
    if desk.chats:
        return "chat"
    return "fill" if desk.fills else "write" if desk.writes else "models"


def _top(desk: Desk, language: str, root: str) -> str:
    """The line above the tabs.

    Its classes say what no model here does, and page.css hides what is for that: Gradio cannot hide
    a tab that nobody has opened yet, and passes on to all fields in a row that it is shown again.
    """
    say = desk.say
    doing = {"chat": desk.chats, "fill": desk.fills, "write": desk.writes}
    classes = " ".join(f"no-{what}" for what, names in doing.items() if not names)
    others = "".join(
        f'<a href="{escape(root)}{other}/" hreflang="{other}">{NAMES[other]}</a>'
        for other in LANGUAGES
        if other != language
    )
    return (
        f'<div id="top" class="{classes}"><h1>openglm</h1>{others}'
        f'<a href="?__theme=light">{say("Light", "浅色")}</a>'
        f'<a href="?__theme=dark">{say("Dark", "深色")}</a>'
        f'<form method="post" action="{escape(root)}logout">'
        f"<button>{say('Log out', '退出')}</button></form></div>"
    )
