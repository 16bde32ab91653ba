"""`glm attack`: tries to break one's own server, as strangers would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.attacks import Verdict

COLOURS = {"withstood": "green", "failed": "red", "not applicable": "dim"}


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "attack",
        help=say(
            "Try to break your own server; exit code 1 if that works. "
            "It needs a key of `glm keys create`; SECURITY.md says more.",
            "攻击自己的服务器以检验其安全性；若被攻破则退出码为 1。"
            "需要用 glm keys create 创建的密钥；详见 SECURITY.md。",
        ),
    )(attack)


def attack(
    url: Annotated[str, typer.Argument(metavar="URL", help=say("Of the server.", "服务器地址。"))],
    key: Annotated[
        str,
        typer.Option(
            envvar="OPENGLM_KEY",
            help=say("Of a user, with high limits.", "普通用户的密钥，限额宜高。"),
        ),
    ],
    other_key: Annotated[
        str | None,
        typer.Option(envvar="OPENGLM_OTHER_KEY", help=say("Of another user.", "另一用户的密钥。")),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=say("The first by default.", "模型名，默认为第一个。"))
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(metavar="ROWS", help=say("Such as A1,R2.", "只运行这些项，如 A1,R2。")),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help=say("The server's log file.", "服务器的日志文件。")
        ),
    ] = None,
    any_host: Annotated[
        bool,
        typer.Option("--any-host", help=say("Not only this machine.", "允许攻击其他主机。")),
    ] = False,
    full: Annotated[
        bool,
        typer.Option(
            "--full",
            help=say(
                "10,000 idle streams instead of 64, 1,000 disconnects instead of 120, "
                "100,000 mutations instead of 300: a quarter of an hour or more.",
                "以 10,000 个闲置流、1,000 次断开、100,000 次变异请求"
                "（默认 64、120、300）检验，需一刻钟以上。",
            ),
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Runs the table of attacks and reports on each."""
    from openglm.attacks import FULL, OMITTED, QUICK, Target, choose, launch
    from openglm.cli.output import console, print_json

    chosen = choose([name.strip() for name in only.split(",")] if only else [])
    verdicts = []
    target = Target(
        url,
        key,
        model=model,
        other_key=other_key,
        log=log,
        any_host=any_host,
        counts=FULL if full else QUICK,
    )
    with closing(target):
        for row in chosen:
            with nullcontext() if json else console.status(f"{row.id}: {row.tries}"):
                verdicts.append(launch(row, target))
    if json:
        print_json({"attacks": [_plain(one) for one in verdicts], "omitted": OMITTED})
    else:
        _report(verdicts, {} if only else OMITTED)
    if any(one.state == "failed" for one in verdicts):
        raise typer.Exit(1)


def _plain(verdict: Verdict) -> dict[str, object]:
    """A verdict for programs."""
    row = verdict.attack
    return {
        "id": row.id,
        "tries": row.tries,
        "expects": row.expects,
        "state": verdict.state,
        "notes": verdict.notes,
        "seconds": round(verdict.seconds, 3),
    }


def _report(verdicts: Sequence[Verdict], omitted: Mapping[str, str]) -> None:
    """A table for people: each row, what came of it, and at the end what was not tried."""
    from rich.table import Table

    from openglm.cli.output import console

    states = {
        "withstood": say("withstood", "抵御"),
        "failed": say("failed", "被攻破"),
        "not applicable": say("not applicable", "不适用"),
    }
    table = Table(box=None, pad_edge=False)
    for title in ("id", say("outcome", "结果"), say("what is tried", "攻击方式"), "s"):
        table.add_column(title, header_style="dim", justify="right" if title == "s" else "left")
    for one in verdicts:
        colour = COLOURS[one.state]
        notes = "".join(f"\n[{colour}]{escape(note)}[/]" for note in one.notes)
        state = f"[{colour}]{states[one.state]}[/]"
        table.add_row(one.attack.id, state, escape(one.attack.tries) + notes, f"{one.seconds:.1f}")
    for name, why in omitted.items():
        table.add_row(name, f"[dim]{say('omitted', '未包含')}[/]", f"[dim]{escape(why)}[/]", "")
    console.print(table)
    failed = sum(one.state == "failed" for one in verdicts)
    console.print(
        say(f"{failed} of {len(verdicts)} failed", f"{len(verdicts)} 项中 {failed} 项被攻破")
    )
