"""`glm keys`: make, list and revoke the keys of the server."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.serve.keys import KeyInfo, KeyStore

DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        "--database",
        metavar="URL",
        help=say("Where the server keeps its keys.", "服务器的数据库地址。"),
    ),
]


def register(app: typer.Typer) -> None:
    """Adds the verb and its three actions."""
    keys = typer.Typer(help=say("Make, list and revoke keys of the server.", "管理服务器的密钥。"))
    keys.command("create", help=say("Make a key; shown once.", "创建密钥，仅显示一次。"))(create)
    keys.command("list", help=say("List all keys.", "列出全部密钥。"))(list_keys)
    keys.command("revoke", help=say("End a key.", "吊销密钥。"))(revoke)
    app.add_typer(keys, name="keys")


def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help=say("Whose it is.", "密钥的名称。"))],
    role: Annotated[
        str, typer.Option(help=say("user or admin.", "角色：user 或 admin。"))
    ] = "user",
    rpm: Annotated[
        int | None, typer.Option(help=say("Requests per minute.", "每分钟请求数上限。"))
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help=say("Requests at once.", "并发请求数上限。"))
    ] = None,
    tokens_per_day: Annotated[
        int | None,
        typer.Option(help=say("Of prompts and answers.", "每天词元数上限，含提示词与回答。")),
    ] = None,
    no_jwt: Annotated[
        bool,
        typer.Option(
            "--no-jwt",
            help=say(
                "Keep only a digest: no tokens as ChatZhipuAI signs them.",
                "只保存摘要；不接受 ChatZhipuAI 所用的签名令牌。",
            ),
        ),
    ] = False,
    database: DatabaseUrl = None,
    json: options.Json = False,
) -> None:
    """Prints the key, which cannot be had again."""
    from openglm.cli.output import console, print_json

    with _store(database) as store:
        key = store.create(
            name,
            role,  # type: ignore[arg-type]  # checked there
            requests_per_minute=rpm,
            concurrency=concurrency,
            tokens_per_day=tokens_per_day,
            signs_tokens=not no_jwt,
        )
    if json:
        print_json({"id": key.partition(".")[0], "key": key})
        return
    console.print(key, soft_wrap=True)
    console.print(
        f"[dim]{say('keep it: it is not shown again', '请妥善保存，之后不再显示')}[/]",
        soft_wrap=True,
    )


def list_keys(database: DatabaseUrl = None, json: options.Json = False) -> None:
    """Prints all keys without their secrets, the revoked ones too."""
    from rich.table import Table

    from openglm.cli.output import console, print_json

    with _store(database) as store:
        found = store.list_keys()
    if json:
        print_json([dataclasses.asdict(info) for info in found])
        return
    table = Table(box=None, pad_edge=False)
    for title in (
        "id",
        say("name", "名称"),
        say("role", "角色"),
        say("limits", "限额"),
        say("last used", "最近使用"),
        say("state", "状态"),
    ):
        table.add_column(title, header_style="dim", no_wrap=title == "id")
    for info in found:
        revoked = say("revoked", "已吊销")
        state = say("active", "有效") if info.revoked_at is None else f"[red]{revoked}[/]"
        used = say("never", "从未") if info.last_used_at is None else _time(info.last_used_at)
        table.add_row(info.id, escape(info.name), info.role, _limits(info), used, state)
    console.print(table)


def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help=say("As listed.", "密钥的 id。"))],
    database: DatabaseUrl = None,
    json: options.Json = False,
) -> None:
    """Ends a key; a running server refuses it within seconds."""
    from openglm.cli.output import console, print_json

    with _store(database) as store:
        info = store.revoke(key_id)
    if json:
        print_json(dataclasses.asdict(info))
    else:
        console.print(f"{say('revoked', '已吊销')}: {info.id} ({escape(info.name)})")


@contextmanager
def _store(url: str | None) -> Iterator[KeyStore]:
    from openglm.errors import UsageError

    try:
        from openglm.serve.database import Database
        from openglm.serve.keys import KeyStore
    except ImportError as error:
        raise UsageError(
            f"keys need the parts of the server, and {error.name} is not installed",
            hint="pip install '.[serve]'",
        ) from error
    database = Database(url)
    try:
        yield KeyStore(database)
    finally:
        database.close()


def _limits(info: KeyInfo) -> str:
    """The limits that differ from the server's."""
    limits = (
        (info.requests_per_minute, say("requests/min", "次/分")),
        (info.concurrency, say("at once", "并发")),
        (info.tokens_per_day, say("tokens/day", "词元/天")),
    )
    own = ", ".join(f"{value:,} {unit}" for value, unit in limits if value is not None)
    return own or say("default", "默认")


def _time(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")
