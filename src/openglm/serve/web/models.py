"""Models: what is served, what memory it takes, and how fast it is just now."""

from __future__ import annotations

import time

import gradio as gr

from openglm.serve.hosted import Hosted
from openglm.serve.web.calls import Desk
from openglm.serve.web.fields import QUIET, html_field
from openglm.serve.web.form import Say
from openglm.serve.web.html import escaped

SECONDS = 2.0
"""Between two looks."""
MIB = 1 << 20


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
            self._speeds[name] = (num_tokens - before) / (now - then) if now > then else 0.0
            self._before[name] = now, num_tokens
        return self._speeds[name]


def build(desk: Desk, tabs: gr.Tabs, label: str) -> None:
    """The tab; it renews itself while it is looked at.

    Args:
        desk: of the page.
        tabs: among which it is.
        label: of this one.
    """
    speeds = _Speeds()

    def cards() -> str:
        every = desk.service.models.hosted.values()
        return "".join(_card(hosted, speeds, desk.say) for hosted in every)

    shown = html_field(cards(), elem_id="models-cards")
    timer = gr.Timer(SECONDS, active=False)
    timer.tick(cards, None, shown, **QUIET)

    def turn(event: gr.SelectData) -> tuple[gr.Timer, str]:
        return gr.Timer(active=event.value == label), cards()

    tabs.select(turn, None, [timer, shown], **QUIET)


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
