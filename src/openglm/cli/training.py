"""What `glm pretrain` and `glm finetune` share: options, run folders, a view of progress."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from openglm.cli.language import say
from openglm.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from openglm.train.loop import Report


Config = Annotated[Path, typer.Argument(metavar="CONFIG.toml")]
Run = Annotated[
    Path | None, typer.Option(help=say("Run folder; runs/NAME by default.", "运行文件夹。"))
]
Resume = Annotated[bool, typer.Option("--resume", help=say("Continue a run.", "接着训练。"))]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help=say("Show settings, do nothing.", "只显示设置。"))
]
JsonReports = Annotated[
    bool, typer.Option("--json", help=say("One JSON line per report.", "逐行输出 JSON。"))
]


def run_folder(run: Path | None, config: Path, resume: bool) -> Path:
    """Where a run goes: a new folder, or with `resume` one that holds a run."""
    folder = run or Path("runs") / config.stem
    if (folder / "run.json").exists() and not resume:
        raise ConfigError(
            f"{folder} already holds a run",
            hint="continue it with --resume, or name another folder with --run",
        )
    if resume and not (folder / "run.json").exists():
        raise ConfigError(f"{folder} holds no run to resume")
    return folder


def assignments(arguments: list[str]) -> dict[str, str]:
    """`--train.steps 100` and `--train.steps=100` as {"train.steps": "100"}."""
    found: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--") or "." not in name:
            raise UsageError(f"unknown option {name}", hint="settings look like --train.steps 100")
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value")
            value = rest.pop(0)
        found[name.removeprefix("--")] = value
    return found


class JsonLines:
    """Reports as JSON lines on standard output."""

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prepare(self, source: str) -> None:
        """A source is about to be read."""
        self._line({"kind": "prepare", "source": source})

    def resumed(self, step: int) -> None:
        """The run goes on behind this step."""
        self._line({"kind": "resumed", "step": step})

    def report(self, report: Report) -> None:
        """Numbers of some steps, or of a validation."""
        self._line({"kind": report.kind, "step": report.step, **report.values})

    def done(self, folder: Path, *_: str) -> None:
        """The end."""
        self._line({"kind": "done", "run": str(folder)})

    def _line(self, values: dict[str, Any]) -> None:
        import json

        typer.echo(json.dumps(values))


class Progress:
    """A progress bar with loss, speed and remaining time."""

    def __init__(self, steps: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        from openglm.cli.output import console

        self.bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=console,
        )
        self.task = self.bar.add_task("train", total=steps, numbers="")
        self.console = console
        self.known: dict[str, float] = {}

    def __enter__(self) -> Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def prepare(self, source: str) -> None:
        """A source is about to be read."""
        self.console.print(f"[dim]tokenising {escape(source)}[/]")

    def resumed(self, step: int) -> None:
        """The run goes on behind this step."""
        self.bar.update(self.task, completed=step)
        self.console.print(f"[dim]resumed at step {step}[/]")

    def report(self, report: Report) -> None:
        """Numbers of some steps, or of a validation."""
        values = report.values
        if report.kind == "validation":
            self.console.print(f"step {report.step}: held-out loss {values['loss']:.4f}")
            return
        if report.kind == "general":
            self._general(values)
            return
        numbers = (
            f"loss {values['loss']:.4f}  {values['tokens_per_s']:,.0f} tokens/s  "
            f"MFU {values['mfu']:.0%}"
        )
        self.bar.update(self.task, completed=report.step, numbers=numbers)

    def _general(self, values: dict[str, float]) -> None:
        """What it knows of other texts; at the end also what it knew."""
        told = []
        for name, value in values.items():
            language = name.partition("_")[0].capitalize()
            before = f"{self.known[name]:.3f} -> " if name in self.known else ""
            told.append(f"{language} {before}{value:.3f}")
        self.known = dict(values)
        self.console.print(f"other texts, bits per byte: {', '.join(told)}")

    def done(self, folder: Path, *ways: str) -> None:
        """The end, and ways to try the result; `{model}` stands for where it is."""
        model = escape(str(folder / "model"))
        self.console.print(f"done: the model is in {model}")
        for way in ways:
            self.console.print(f"[dim]try it: glm {way.format(model=model)}[/]")
