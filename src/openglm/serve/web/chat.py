"""Chat: a conversation whose answers can be stopped, made anew, and whose questions edited."""

from __future__ import annotations

import base64
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from openglm.serve.chat_call import ChatCall, answer
from openglm.serve.web.calls import Desk, Pace
from openglm.serve.web.fields import QUIET, html_field, wish, wish_fields
from openglm.serve.web.history import MOST, History, Turn
from openglm.serve.web.html import escaped

USUAL_TOKENS = 512
PAIR: dict[str, Any] = {"size": "md", "min_width": 80}
NARROW: dict[str, Any] = {"scale": 0, "min_width": 100}
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
STORED = {"storage_key": "openglm_chat", "secret": "openglm"}
"""Where a browser keeps conversations. Gradio encrypts them under a secret that its page tells."""
Turns = list[dict[str, Any]]
"""A conversation as the page has it."""


def build(desk: Desk, blocks: gr.Blocks) -> None:
    """The tab; while no model that is loaded chats, a note is in its place."""
    _ChatTab(desk).connect(blocks)
    note = gr.Markdown(_note(desk), elem_id="chat-note")
    desk.renewal.show(note, lambda _: _note(desk))


def _note(desk: Desk) -> str:
    """What can be done where no model chats."""
    say = desk.say
    here, absent = ", ".join(desk.writes), ", ".join(desk.absent)
    text = say("### No chat model is loaded\n", "### 当前没有加载对话模型\n")
    if here:
        text += say(f"What {here} can do is in the other tabs. ", f"{here} 的功能见其他标签页。")
    if absent:
        text += say(
            f"{absent} can be loaded by an admin, in the tab Models.",
            f"{absent} 可由管理员在“模型”标签页中加载。",
        )
    else:
        text += say(
            "For conversations serve a chat model: `glm serve path/to/chatglm3-6b`.",
            "若要对话，请启动对话模型：`glm serve path/to/chatglm3-6b`。",
        )
    return text


class _ChatTab:
    """The tab.

    Args:
        desk: of the page.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        say = desk.say
        with gr.Row(elem_id="chat-all"):
            with gr.Column(scale=3):
                self._build_conversation()
            with gr.Column(scale=1, min_width=260):
                with gr.Row():
                    self.new = gr.Button(say("New", "新对话"), elem_id="chat-new", **PAIR)
                    self.drop = gr.Button(say("Delete", "删除"), elem_id="chat-drop", **PAIR)
                self.list = gr.Dataset(
                    components=[gr.Textbox(visible=False)],
                    samples=[],
                    label=say("Earlier conversations", "历史对话"),
                    type="index",
                    layout="table",
                    samples_per_page=MOST,
                    visible=False,
                    elem_id="chat-history",
                )
                self.export = html_field(elem_id="chat-export")
                self.system = gr.Textbox(
                    label=say("System prompt", "系统提示"), lines=3, elem_id="chat-system"
                )
                self.fields = wish_fields(say, desk.chats, USUAL_TOKENS)
        desk.renewal.choose(self.fields[0], lambda: desk.chats)
        self.kept = gr.BrowserState(**STORED)

    def _build_conversation(self) -> None:
        say = self.desk.say
        self.turns = gr.Chatbot(
            label=say("Conversation", "对话"),
            show_label=False,
            height=560,
            editable="user",
            latex_delimiters=LATEX,
            buttons=["copy", "copy_all"],
            feedback_options=None,
            placeholder=say("Ask something.", "请提问。"),
            allow_tags=False,
            elem_id="chat-turns",
        )
        with gr.Row(elem_classes=["low"]):
            self.asked = gr.Textbox(
                show_label=False,
                container=False,
                placeholder=say("Ask something ...", "请输入问题……"),
                scale=6,
                min_width=120,
                elem_id="chat-asked",
            )
            self.go = gr.Button(say("Send", "发送"), variant="primary", elem_id="chat-go", **NARROW)
            self.stop = gr.Button(say("Stop", "停止"), elem_id="chat-stop", **NARROW)

    def connect(self, blocks: gr.Blocks) -> None:
        """Says what happens when."""
        asking, answering = [self.asked, self.turns], [self.turns, self.system, *self.fields]
        kept = [self.kept, self.list, self.export]
        begun = [
            gr.on([self.go.click, self.asked.submit], _ask, asking, asking, **QUIET),
            self.turns.retry(_take_back, self.turns, self.turns, **QUIET),
            self.turns.edit(_rewrite, self.turns, self.turns, **QUIET),
        ]
        running = [each.success(self._answer, answering, self.turns, **QUIET) for each in begun]
        for each in running:
            each.then(self._keep, [self.turns, self.kept], kept, **QUIET)
        self.stop.click(self._keep, [self.turns, self.kept], kept, cancels=running, **QUIET)
        self.new.click(self._close, self.kept, [self.turns, *kept], cancels=running, **QUIET)
        self.turns.clear(self._close, self.kept, [self.turns, *kept], cancels=running, **QUIET)
        self.drop.click(self._drop, self.kept, [self.turns, *kept], cancels=running, **QUIET)
        self.list.click(
            self._open, [self.list, self.kept], [self.turns, *kept], cancels=running, **QUIET
        )
        blocks.load(self._show, self.kept, [self.turns, *kept], **QUIET)

    async def _answer(
        self, request: gr.Request, turns: Turns, system: str, *values: Any
    ) -> AsyncGenerator[Turns, None]:
        """The conversation with the answer to its last question, as it grows."""
        asked, said = wish(*values), _plain(turns)
        messages = [{"role": "system", "content": system}] * bool(system.strip()) + said
        async with self.desk.calling(request, asked) as (call, hosted):
            wanted = ChatCall(messages=messages, sampling=asked.sampling, place=call.place)
            found = await answer(hosted, wanted)
            call.measure(found.writing, hosted.name)
            text, pace = "", Pace()
            async with aclosing(found.pieces()) as pieces:
                async for piece in pieces:
                    text += "".join(part for part in piece.pieces if isinstance(part, str))
                    if piece.finish_reason is not None or pace.is_due():
                        yield [*said, {"role": "assistant", "content": text}]

    def _keep(self, request: gr.Request, turns: Turns, kept: Any) -> tuple[Any, ...]:
        """What the browser keeps, with the conversation on the page."""
        history = History.read(kept, _owner(request))
        history.put([Turn.model_validate(turn) for turn in _plain(turns)])
        return self._shown(history)[1:]

    def _close(self, request: gr.Request, kept: Any) -> tuple[Any, ...]:
        """An empty page; what was on it is kept."""
        history = History.read(kept, _owner(request))
        history.is_open = False
        return self._shown(history)

    def _drop(self, request: gr.Request, kept: Any) -> tuple[Any, ...]:
        """An empty page; what was on it is forgotten."""
        history = History.read(kept, _owner(request))
        history.drop()
        return self._shown(history)

    def _open(self, request: gr.Request, index: int, kept: Any) -> tuple[Any, ...]:
        """An earlier conversation."""
        history = History.read(kept, _owner(request))
        history.take(index)
        return self._shown(history)

    def _show(self, request: gr.Request, kept: Any) -> tuple[Any, ...]:
        """What was on the page when it was left."""
        return self._shown(History.read(kept, _owner(request)))

    def _shown(self, history: History) -> tuple[Any, ...]:
        """The conversation, what the browser keeps, the list of it, and the link that saves it."""
        turns = [turn.model_dump() for turn in history.opened]
        samples = [[title] for title in history.titles]
        titles = gr.Dataset(samples=samples, visible=bool(samples))
        return turns, history.model_dump(), titles, self._export(turns)

    def _export(self, turns: Turns) -> str:
        """A link that holds the conversation, so nothing need be kept here to save it."""
        if not turns:
            return ""
        text = "\n\n".join(f"## {turn['role']}\n\n{turn['content']}" for turn in turns)
        data = base64.b64encode(text.encode()).decode("ascii")
        label = escaped(self.desk.say("Save as Markdown", "保存为 Markdown"))
        return (
            '<a download="conversation.md" '
            f'href="data:text/markdown;charset=utf-8;base64,{data}">{label}</a>'
        )


def _owner(request: gr.Request) -> str:
    """The id of the reader's key; see `page`."""
    return str(request.username)


def _ask(question: str, turns: Turns) -> tuple[str, Turns]:
    """An empty field, and the conversation with the question."""
    if not question.strip():
        raise gr.Error("...", visible=False, print_exception=False)  # nothing follows
    return "", [*_plain(turns), {"role": "user", "content": question}]


def _take_back(turns: Turns, which: gr.RetryData) -> Turns:
    """The conversation up to the question whose answer is not liked."""
    plain = _plain(turns)
    place = _place(which.index)
    while plain[place]["role"] != "user":
        place -= 1
    return plain[: place + 1]


def _rewrite(turns: Turns, which: gr.EditData) -> Turns:
    """The conversation up to a question that was edited."""
    return [*_plain(turns)[: _place(which.index)], {"role": "user", "content": str(which.value)}]


def _place(index: int | tuple[int, int]) -> int:
    return index if isinstance(index, int) else index[0]


def _plain(turns: Turns) -> Turns:
    """Role and text of each turn; the page adds more, and writes texts as lists of parts."""
    return [{"role": turn["role"], "content": _text(turn["content"])} for turn in turns]


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    return str(content["text"]) if isinstance(content, dict) else str(content)
