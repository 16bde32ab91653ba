"""Models: what is loaded, what memory it takes, and how fast it is just now; and what is not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import gradio as gr

from openglm.serve.hosted import Hosted
from openglm.serve.known import Known, State
from openglm.serve.web.calls import Desk
from openglm.serve.web.fields import QUIET, html_field
from openglm.serve.web.form import Say
from openglm.serve.web.html import escaped
from openglm.serve.web.loading import LoadingFields

SECONDS = 2.0
"""Between two looks."""
MIB = 1 << 20
STATES: Mapping[State, tuple[str, str]] = {
    "unloaded": ("not loaded", "未加载"),
    "loading": ("loading", "正在加载"),
    "loaded": ("loaded", "已加载"),
    "unloading": ("unloading", "正在卸载"),
}
"""In English and Chinese."""


class _Speeds:
    """Tokens fed per second between looks at least half of `SECONDS` apart, shared by all pages."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[float, int]] = {}
        self._speeds: dict[str, float] = {}

    def of(self, name: str, num_tokens: int) -> float:
        """Of a model that has fed so many tokens since its start."""
        now = time.monotonic()
        then, before = self._before.get(name, (now, num_tokens))
        if name not in self._before or now - then > SECONDS / 2:
            fed = max(0, num_tokens - before)  # a model that was loaded anew begins at 0
            self._speeds[name] = fed / (now - then) if now > then else 0.0
            self._before[name] = now, num_tokens
        return self._speeds[name]


def build(desk: Desk, blocks: gr.Blocks, tabs: gr.Tabs, label: str) -> list[Any]:
    """The tab; it renews itself while it is looked at.

    Args:
        desk: of the page.
        blocks: the page.
        tabs: among which it is.
        label: of this one.

    Returns:
        the events after which other models are loaded.
    """
    speeds = _Speeds()

    # Both in the event loop of the server, where models come and go.
    async def cards() -> str:
        return _cards(desk, speeds)

    async def turn(event: gr.SelectData) -> tuple[gr.Timer, str]:
        return gr.Timer(active=event.value == label), _cards(desk, speeds)

    loading = LoadingFields(desk)
    shown = html_field(_cards(desk, speeds), elem_id="models-cards")
    desk.renewal.show(shown, lambda _: _cards(desk, speeds))
    timer = gr.Timer(SECONDS, active=False)
    timer.tick(cards, None, shown, **QUIET)
    tabs.select(turn, None, [timer, shown], **QUIET)
    return loading.connect(blocks)


def _cards(desk: Desk, speeds: _Speeds) -> str:
    """All models."""
    hosted = desk.service.models.hosted
    return "".join(
        _card(hosted[name], speeds, desk.say) if name in hosted else _small_card(known, desk.say)
        for name, known in desk.service.models.known.items()
    )


def _small_card(known: Known, say: Say) -> str:
    """A model that does not answer now."""
    state = say(*STATES[known.state])
    return (
        f'<section class="card away"><h3>{escaped(known.name)}</h3><p><span>{state}</span></p>'
        "</section>"
    )


def _card(hosted: Hosted, speeds: _Speeds, say: Say) -> str:
    """A model."""
    engine = hosted.runner.engine
    found = engine.statistics
    pages = engine.cache.page_bytes * engine.cache.num_pages
    speed = speeds.of(hosted.name, found.num_tokens)
    facts = (
        (say("Tokens per second", "词元/秒"), f"{speed:,.0f}"),
        (say("Running / waiting", "运行 / 等待"), f"{found.running} / {found.waiting}"),
        (say("Weights", "权重"), f"{_weight_bytes(hosted) / MIB:,.0f} MiB"),
        (say("Keys and values", "键值缓存"), f"{found.usage:.0%} / {pages / MIB:,.0f} MiB"),
        (say("Positions", "上下文长度"), f"{hosted.context_length:,}"),
        (say("Tokens so far", "累计词元"), f"{found.num_tokens:,}"),
    )
    told = "".join(f"<div><dt>{escaped(name)}</dt><dd>{fact}</dd></div>" for name, fact in facts)
    return (
        f'<section class="card"><h3>{escaped(hosted.name)}</h3>'
        f"<p>{_skills(hosted, say)}</p><dl>{told}</dl></section>"
    )


def _weight_bytes(hosted: Hosted) -> int:
    """Memory of parameters and buffers; what layers share counts once."""
    network = hosted.model.network
    return sum(each.nbytes for each in {*network.parameters(), *network.buffers()})


def _skills(hosted: Hosted, say: Say) -> str:
    """What it can do, and whether it cannot do anything any more."""
    skills = {
        say("chat", "对话"): hosted.can_chat,
        say("tools", "工具"): hosted.can_call_tools,
        say("fill", "填空"): hosted.can_fill,
        say("write", "续写"): True,
    }
    shown = "".join(f"<span>{skill}</span>" for skill, has in skills.items() if has)
    if hosted.runner.failure is not None:
        shown += f'<span class="bad">{say("stopped", "已停止")}</span>'
    return shown
