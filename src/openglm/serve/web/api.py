"""API: how programs call this server, and for admins the keys that they call it with."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import gradio as gr
from starlette.concurrency import run_in_threadpool

from openglm.serve.identity import ROLES, Role
from openglm.serve.keys import KeyInfo
from openglm.serve.web.calls import Desk, shown
from openglm.serve.web.fields import QUIET, SMALL, html_field
from openglm.serve.web.html import table

T = TypeVar("T")
CURL = """curl {address}/v1/{path} \\
  -H "Authorization: Bearer ID.SECRET" \\
  -H "Content-Type: application/json" \\
  -d '{body}'
"""
PYTHON = """import openai

client = openai.OpenAI(
    base_url="{address}/v1",
    api_key="ID.SECRET",
)
{call}
"""
CHAT = (
    "chat/completions",
    '{{"model": "{model}",\n       "messages": [{{"role": "user", "content": "Hello"}}]}}',
    "done = client.chat.completions.create(\n"
    '    model="{model}",\n'
    '    messages=[{{"role": "user", "content": "Hello"}}],\n'
    ")\n"
    "print(done.choices[0].message.content)",
)
CONTINUE = (
    "completions",
    '{{"model": "{model}", "max_tokens": 32,\n       "prompt": "Once upon a time"}}',
    "done = client.completions.create(\n"
    '    model="{model}",\n'
    '    prompt="Once upon a time",\n'
    "    max_tokens=32,\n"
    ")\n"
    "print(done.choices[0].text)",
)


def build(desk: Desk, blocks: gr.Blocks) -> None:
    """The tab. What is not for this reader is not in it: the page asks when it is opened."""
    say = desk.say
    gr.Markdown(
        say(
            "OpenAI's and BigModel's clients work unchanged with the address `/v1` or "
            "`/api/paas/v4` of this server and a key.",
            "OpenAI 与智谱的客户端无需修改：地址填本服务器的 `/v1` 或 `/api/paas/v4`，"
            "再加一个密钥。",
        )
    )
    with gr.Row(equal_height=True):
        code: dict[str, Any] = {"interactive": False, "wrap_lines": True, "lines": 7}
        curl = gr.Code(label="curl", language="shell", elem_id="api-curl", **code)
        python = gr.Code(label="Python", language="python", elem_id="api-python", **code)
    for block, form in ((curl, CURL), (python, PYTHON)):
        desk.renewal.show(block, partial(_snippet, desk, form))
    _KeyFields(desk).connect(blocks)


class _KeyFields:
    """Table, making and revoking of keys.

    Args:
        desk: of the page.
    """

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        say = desk.say
        self.roles = dict(zip(ROLES, (say("user", "用户"), say("admin", "管理员")), strict=True))
        with gr.Column(visible=False) as self.group:
            gr.Markdown(say("### Keys", "### 密钥"))
            self.table = html_field(elem_classes=["plain"], elem_id="keys-table")
            with gr.Row(elem_classes=["low"]):
                self.name = gr.Textbox(label=say("Name", "名称"), max_lines=1, elem_id="keys-name")
                choices = [(text, role) for role, text in self.roles.items()]
                self.role = gr.Dropdown(choices, value=ROLES[0], label=say("Role", "角色"))
                self.make = gr.Button(
                    say("Create key", "创建密钥"), variant="primary", elem_id="keys-make", **SMALL
                )
            self.made = gr.Textbox(
                label=say("New key, shown only now", "新密钥，仅显示这一次"),
                interactive=False,
                visible=False,
                buttons=["copy"],
                elem_id="keys-made",
            )
            with gr.Row(elem_classes=["low"]):
                self.which = gr.Dropdown(
                    [], label=say("Key", "密钥"), elem_id="keys-which", scale=2
                )
                self.end = gr.Button(
                    say("Revoke", "吊销"), variant="stop", elem_id="keys-end", **SMALL
                )

    def connect(self, blocks: gr.Blocks) -> None:
        """Says what happens when."""
        listed = [self.table, self.which]
        blocks.load(self._look, None, [self.group, *listed], **QUIET)
        self.make.click(self._create, [self.name, self.role], [self.made, *listed], **QUIET)
        self.end.click(self._revoke, self.which, listed, **QUIET)

    async def _look(self, request: gr.Request) -> tuple[Any, ...]:
        if (await self.desk.who(request)).role != "admin":
            return gr.update(visible=False), "", gr.update()
        return gr.update(visible=True), *await self._managing(request, self._listed)

    async def _create(self, request: gr.Request, name: str, role: Role) -> tuple[Any, ...]:
        key = await self._managing(request, lambda: self.desk.keys.create(name, role))
        made = gr.update(value=key, visible=True)
        return made, *await self._managing(request, self._listed)

    async def _revoke(self, request: gr.Request, key_id: str | None) -> tuple[Any, ...]:
        if key_id is not None:
            await self._managing(request, lambda: self.desk.keys.revoke(key_id))
        return await self._managing(request, self._listed)

    async def _managing(self, request: gr.Request, act: Callable[[], T]) -> T:
        """What an admin may do; errors are shown on the page."""
        try:
            await self.desk.admin(request)
            return await run_in_threadpool(act)
        except Exception as error:
            raise shown(error) from error

    def _listed(self) -> tuple[str, Any]:
        """The table, and the keys that may be revoked."""
        say = self.desk.say
        keys = self.desk.keys.list_keys()
        heads = [
            "ID",
            say("Name", "名称"),
            say("Role", "角色"),
            say("Created", "创建日期"),
            say("Last used", "最近使用"),
            say("State", "状态"),
        ]
        valid = [(f"{key.name} ({key.id})", key.id) for key in keys if key.revoked_at is None]
        return table(heads, [self._row(key) for key in keys]), gr.update(choices=valid, value=None)

    def _row(self, key: KeyInfo) -> tuple[str, ...]:
        say = self.desk.say
        state = say("valid", "有效") if key.revoked_at is None else say("revoked", "已吊销")
        days = _day(key.created_at), _day(key.last_used_at)
        return (key.id, key.name, self.roles[key.role], *days, state)


def _snippet(desk: Desk, form: str, request: gr.Request) -> str:
    """A program that calls what is loaded, or the default."""
    assert request.request is not None  # Gradio makes some without, in its tests
    url = request.request.url
    path, body, call = CHAT if desk.chats else CONTINUE
    model = (desk.chats or desk.writes or desk.absent)[0]
    return form.format(
        address=f"{url.scheme}://{url.netloc}",
        path=path,
        body=body.format(model=model),
        call=call.format(model=model),
    )


def _day(seconds: int | None) -> str:
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"
