"""`glm pretrain`: train from a TOML file, with progress, metrics and exact resume."""

from __future__ import annotations

import typer

from openglm.cli import options, training
from openglm.cli.language import say
from openglm.cli.training import JsonLines, Progress, assignments, run_folder


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
    config: training.Config,
    run: training.Run = None,
    resume: training.Resume = False,
    print_config: training.PrintConfig = False,
    device: options.Device = "auto",
    json: training.JsonReports = False,
) -> None:
    """Trains; the run folder holds settings, metrics, plots, checkpoints and the final model."""
    from openglm.train.config import load_run_config

    settings = load_run_config(config, assignments(context.args))
    if print_config:
        from openglm.cli.output import print_json

        print_json(settings.to_dict())
        return
    folder = run_folder(run, config, resume)

    from openglm.home import home
    from openglm.loading import pick_device
    from openglm.train.loop import Trainer
    from openglm.train.pretraining import Pretraining

    view = JsonLines() if json else Progress(settings.train.steps)
    with view:
        place = pick_device(device)
        task = Pretraining(settings, home() / "corpora", place, view.prepare)
        trainer = Trainer(task, folder, place, view.report)
        if resume:
            trainer.resume()
            view.resumed(trainer.step)
        trainer.run()
        trainer.export()
    view.done(folder, 'fill {model} "... \\[MASK] ..."')
