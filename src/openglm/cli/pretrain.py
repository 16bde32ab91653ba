"""`glm pretrain`: train from a TOML file, with progress, metrics and exact resume."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say
from openglm.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from openglm.train.loop import Report


def register(app: typer.Typer) -> None:
    """Adds the verb; `--table.key value` options are overrides of the configuration."""
    app.command(
        "pretrain",
        help=say(
            "Pretrain from CONFIG.toml. Any setting: --train.steps 100.",
            "按 CONFIG.toml 预训练。任何设置都可覆盖：--train.steps 100。",
        ),
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(pretrain)


def pretrain(
    context: typer.Context,
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml")],
    run: Annotated[
        Path | None, typer.Option(help=say("Run folder; runs/NAME by default.", "运行文件夹。"))
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help=say("Continue a run.", "接着训练。"))
    ] = False,
    print_config: Annotated[
        bool, typer.Option("--print-config", help=say("Show settings, do nothing.", "只显示设置。"))
    ] = False,
    device: options.Device = "auto",
    json: Annotated[
        bool, typer.Option("--json", help=say("One JSON line per report.", "逐行输出 JSON。"))
    ] = False,
) -> None:
    """Trains; the run folder holds settings, metrics, plots, checkpoints and the final model."""
    from openglm.train.config import load_run_config

    settings = load_run_config(config, assignments(context.args))
    if print_config:
        from openglm.cli.output import print_json

        print_json(settings.to_dict())
        return
    folder = run or Path("runs") / config.stem
    if (folder / "run.json").exists() and not resume:
        raise ConfigError(
            f"{folder} already holds a run",
            hint="continue it with --resume, or name another folder with --run",
        )
    if resume and not (folder / "run.json").exists():
        raise ConfigError(f"{folder} holds no run to resume")

    from openglm.home import home
    from openglm.loading import pick_device
    from openglm.train.loop import Trainer
    from openglm.train.pretraining import Pretraining

    view = _JsonLines() if json else _Progress(settings.train.steps)
    with view:
        place = pick_device(device)
        task = Pretraining(settings, home() / "corpora", place, view.prepare)
        trainer = Trainer(task, folder, place, view.report)
        if resume:
            trainer.resume()
            view.resumed(trainer.step)
        trainer.run()
        trainer.export()
    view.done(folder)


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


class _JsonLines:
    """Reports as JSON lines on standard output."""

    def __enter__(self) -> _JsonLines:
        return self

    def __exit__(self, *_: object) -> None: ...

    def prepare(self, source: str) -> None:
        self._line({"kind": "prepare", "source": source})

    def resumed(self, step: int) -> None:
        self._line({"kind": "resumed", "step": step})

    def report(self, report: Report) -> None:
        self._line({"kind": report.kind, "step": report.step, **report.values})

    def done(self, folder: Path) -> None:
        self._line({"kind": "done", "run": str(folder)})

    def _line(self, values: dict[str, Any]) -> None:
        import json

        typer.echo(json.dumps(values))


class _Progress:
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

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def prepare(self, source: str) -> None:
        self.console.print(f"[dim]tokenising {escape(source)}[/]")

    def resumed(self, step: int) -> None:
        self.bar.update(self.task, completed=step)
        self.console.print(f"[dim]resumed at step {step}[/]")

    def report(self, report: Report) -> None:
        values = report.values
        if report.kind == "validation":
            self.console.print(f"step {report.step}: held-out loss {values['loss']:.4f}")
            return
        numbers = (
            f"loss {values['loss']:.4f}  {values['tokens_per_s']:,.0f} tokens/s  "
            f"MFU {values['mfu']:.0%}"
        )
        self.bar.update(self.task, completed=report.step, numbers=numbers)

    def done(self, folder: Path) -> None:
        model = escape(str(folder / "model"))
        self.console.print(f"done: the model is in {model}")
        self.console.print(f'[dim]try it: glm fill {model} "... \\[MASK] ..."[/]')
