"""`glm download`: fetch a checkpoint, or import it from a folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.hub import Plan, Report

LISTED_NAMES = 3
"""How many of the files that are left out are named."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "download", help=say("Fetch a model: resumable, checked.", "下载模型：可续传，校验文件。")
    )(download)


def download(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help=say("A name of `glm info`, or ORG/NAME on a hub.", "模型名或仓库名 ORG/NAME。"),
        ),
    ],
    hub: Annotated[
        str | None,
        typer.Option(help=say("huggingface or modelscope.", "huggingface 或 modelscope。")),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help=say("Commit, branch or tag.", "提交、分支或标签。"))
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help=say("A mirror of the hub.", "镜像站地址。"))
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="DIR",
            help=say("Copy from a folder, without a network.", "从本地文件夹导入，不用网络。"),
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help=say("Hash what is here again, mend what is damaged.", "重新校验并修复已有文件。"),
        ),
    ] = False,
    json: options.Json = False,
) -> None:
    """Fetches into the user folder; MODEL can then be named wherever a model is asked for."""
    from openglm.cli.output import console, print_json
    from openglm.errors import UsageError
    from openglm.hub import download as fetch
    from openglm.hub import find_target, import_folder, open_hub

    target = find_target(model, hub)
    with _Quiet() if json else _Shown() as view:
        if source is None:
            report = fetch(target, open_hub(target, endpoint), view, revision, verify)
        else:
            named = {"--hub": hub, "--revision": revision, "--endpoint": endpoint}
            for option, value in named.items():
                if value:
                    raise UsageError(f"{option} has no meaning with --from")
            report = import_folder(target, source, view, verify)
    if json:
        print_json(_facts(report))
    else:
        _tell(report, model)
        for warning in _doubts(report, model):
            console.print(f"[yellow]{escape(warning)}[/]", soft_wrap=True)


def _doubts(report: Report, name: str) -> list[str]:
    """What is odd about the files: another network than the name says, or no vocabulary."""
    from openglm.checkpoints import describe_checkpoint
    from openglm.errors import OpenGLMError
    from openglm.registry import find_checkpoint, presets
    from openglm.tokenizers import find_tokenizer

    doubts = []
    key = find_checkpoint(name)
    try:
        found = describe_checkpoint(report.folder)[0].num_parameters
        if key is not None and found != presets()[key].parameters:
            doubts.append(
                f"these files hold {found:,} parameters; {key} has {presets()[key].parameters:,}"
            )
        if find_tokenizer(report.folder) is None:
            doubts.append("there is no vocabulary among the files: texts need --tokenizer FOLDER")
    except OpenGLMError as error:
        doubts.append(f"the files cannot be loaded as they are: {error.message}")
    return doubts


def _facts(report: Report) -> dict[str, Any]:
    record = dataclasses.asdict(report.record) if report.record else {"files": {}}
    return {
        "status": report.status,
        "folder": str(report.folder),
        "brought_bytes": report.brought_bytes,
        "checked": report.record is not None,
        **record,
    }


def _tell(report: Report, model: str) -> None:
    from openglm.cli.output import console

    words = {
        "downloaded": say("downloaded and checked", "已下载并校验"),
        "imported": say("imported and checked", "已导入并校验"),
        "already here": say("already here", "已经存在"),
    }[report.status]
    if report.record is None:
        words += say(", not by glm download: nothing was checked", "，并非由本命令下载，未校验")
    console.print(f"[green]{escape(words)}[/]: {escape(str(report.folder))}", soft_wrap=True)
    if report.record is not None and report.status == "already here":
        licence = report.record.licence or say("not stated", "未注明")
        console.print(f"  [dim]{say('licence', '许可')}:[/] {escape(licence)}", soft_wrap=True)
    console.print(f"[dim]glm info {escape(model)}[/]", soft_wrap=True)


class _Quiet:
    """Shows nothing."""

    def __enter__(self) -> _Quiet:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None: ...

    def plan(self, plan: Plan) -> None: ...

    def bytes(self, count: int) -> None: ...

    def retrying(self, reason: str, seconds: float) -> None: ...

    def checking(self, path: str) -> None: ...


class _Shown(_Quiet):
    """Shows the plan, and a bar with speed and time left."""

    def __init__(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        from openglm.cli.output import console

        self.console = console
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
        )

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.bar.tasks:
            self.bar.stop()
        if kind is KeyboardInterrupt:
            self.console.print(
                say("the same command goes on where this one stopped", "再次运行同一命令即可续传")
            )

    def plan(self, plan: Plan) -> None:
        from openglm.cli.output import size

        for line in _lines(plan):
            self.console.print(line, soft_wrap=True)
        for file in plan.files:
            self.console.print(f"  {size(file.size):>10}  {escape(file.path)}", soft_wrap=True)
        english = (
            f"{size(plan.total_bytes)} in {len(plan.files)} files, {size(plan.here_bytes)} of them "
            f"here already; {size(plan.free_bytes)} free"
        )
        chinese = (
            f"共 {len(plan.files)} 个文件 {size(plan.total_bytes)}，已有 {size(plan.here_bytes)}；"
            f"剩余空间 {size(plan.free_bytes)}"
        )
        self.console.print(f"  {say(english, chinese)}", soft_wrap=True)
        self.bar.start()
        self.task = self.bar.add_task(
            say("fetching", "下载"), total=plan.total_bytes, completed=plan.here_bytes
        )

    def bytes(self, count: int) -> None:
        self.bar.update(self.task, advance=count, description=say("fetching", "下载"))

    def retrying(self, reason: str, seconds: float) -> None:
        text = say(f"{reason}; again in {seconds:.0f} s", f"{reason}；{seconds:.0f} 秒后重试")
        self.console.print(f"[yellow]{escape(text)}[/]", soft_wrap=True)

    def checking(self, path: str) -> None:
        text = say("checking ", "校验 ") + escape(path)
        if self.bar.tasks:
            self.bar.update(self.task, description=text)
        else:
            self.console.print(f"[dim]{text}[/]", soft_wrap=True)


def _lines(plan: Plan) -> list[str]:
    """What people should know before the first byte: terms, origin, place, what is left out."""
    target = plan.target
    licence = target.licence or plan.licence or say("not stated", "未注明")
    lines = [f"[bold]{escape(target.title)}[/]"]
    for name, value in (
        (say("licence", "许可"), licence),
        (say("hub says", "仓库注明"), plan.licence if target.licence else ""),
        (say("from", "来源"), plan.source + (f" at {plan.revision}" if plan.revision else "")),
        (say("to", "目标"), str(plan.folder)),
    ):
        if value:
            lines.append(f"  [dim]{name}:[/] {escape(value)}")
    for reason, paths in plan.left_out.items():
        names = ", ".join(paths[:LISTED_NAMES]) + (", ..." if len(paths) > LISTED_NAMES else "")
        lines.append(f"  [dim]{say('left out', '不下载')}:[/] {escape(names)} ({reason})")
    return lines
