"""`glm finetune`: teach a trained model conversations, with a look at the data first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from openglm.cli import options, training
from openglm.cli.language import say
from openglm.cli.training import JsonLines, Progress, assignments, run_folder

if TYPE_CHECKING:
    from openglm.data.blank_infilling import Example
    from openglm.train.finetuning import Finetuning


def register(app: typer.Typer) -> None:
    """Adds the verb; `--table.key value` options are overrides of the configuration."""
    app.command(
        "finetune",
        help=say(
            "Fine-tune from CONFIG.toml. Any setting: --train.epochs 2.",
            "按 CONFIG.toml 微调。任何设置都可覆盖：--train.epochs 2。",
        ),
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(finetune)


def finetune(
    context: typer.Context,
    config: training.Config,
    method: Annotated[
        str | None,
        typer.Option(help=say("full, freeze, lora or ptuning.", "full、freeze、lora 或 ptuning。")),
    ] = None,
    run: training.Run = None,
    resume: training.Resume = False,
    preview: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=say("Show so many examples, train nothing.", "只显示若干样本，不训练。"),
        ),
    ] = None,
    print_config: training.PrintConfig = False,
    device: options.Device = "auto",
    json: training.JsonReports = False,
) -> None:
    """Trains; the run folder holds settings, metrics, plots, checkpoints and the result."""
    from openglm.train.finetune_config import load_finetune_config

    given = assignments(context.args) | ({} if method is None else {"method": method})
    settings = load_finetune_config(config, given)
    if print_config:
        from openglm.cli.output import print_json

        print_json(settings.to_dict())
        return
    folder = None if preview else run_folder(run, config, resume)

    from openglm.loading import pick_device
    from openglm.train.finetuning import Finetuning
    from openglm.train.loop import Trainer

    place = pick_device(device)
    task = Finetuning(settings, place)
    if folder is None:
        show(task, preview or 1)
        return
    view = JsonLines() if json else Progress(task.settings.train.steps)
    with view:
        trainer = Trainer(task, folder, place, view.report)
        if resume:
            trainer.resume()
            view.resumed(trainer.step)
        trainer.run()
        trainer.export()
    chats = "chat {model}" if task.chats else 'generate {model} "..."'
    view.done(folder, chats, "serve {model}")


def show(task: Finetuning, count: int) -> None:
    """Prints examples as the network reads them; what it learns to write is green."""
    from rich.text import Text

    from openglm.cli.output import console

    examples = task.supervised.examples
    learned = sum(int(example.loss_mask.sum()) for example in examples)
    read = sum(len(example.input_ids) for example in examples)
    console.print(f"{len(examples):,} examples, {read:,} tokens, {learned:,} of them learned")
    decode = task.tokenizer.decode
    for number, example in enumerate(examples[:count], start=1):
        console.print(f"[bold]{number}[/] [dim]({len(example.input_ids)} tokens)[/]")
        text = Text()
        for piece, is_learned in _pieces(example):
            text.append(decode(piece, special=True), style="green" if is_learned else "dim")
        console.print(text)


def _pieces(example: Example) -> list[tuple[list[int], bool]]:
    """Runs of tokens that are learned, or only read."""
    inputs: list[int | None] = [*example.input_ids.tolist(), None]
    found: list[tuple[list[int], bool]] = [([example.input_ids.tolist()[0]], False)]
    learned = example.loss_mask.astype(bool).tolist()
    targets = example.targets.tolist()
    for behind, target, is_learned in zip(inputs[1:], targets, learned, strict=True):
        shown = target if is_learned else behind
        if shown is None:
            continue
        if found[-1][1] != is_learned:
            found.append(([], is_learned))
        found[-1][0].append(shown)
    return found
