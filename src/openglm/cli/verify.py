"""`glm verify`: load a checkpoint and compare it with recorded numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say
from openglm.errors import VerificationError


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "verify",
        help=say(
            "Compare a checkpoint's outputs with recorded ones.", "与官方代码记录的输出逐项比较。"
        ),
    )(verify)


def verify(
    checkpoint: Annotated[str, typer.Argument(help=say("Checkpoint folder.", "模型文件夹。"))],
    golden: Annotated[
        list[Path], typer.Option("--golden", help=say("A recorded .npz; repeatable.", "记录文件。"))
    ],
    atol: Annotated[
        float, typer.Option(help=say("Largest absolute difference.", "允许的最大绝对误差。"))
    ] = 1e-5,
    device: options.Device = "cpu",
    json: options.Json = False,
) -> None:
    """Prints the largest absolute difference of every recorded array; fails above `atol`."""
    from openglm.cli.output import console, print_json
    from openglm.loading import load
    from openglm.verification import compare_golden, recorded_description

    described = recorded_description(golden[0])
    model = load(checkpoint, dtype="float32", device=device, description=described)
    results = [result for path in golden for result in compare_golden(model, path, atol)]
    failed = [result for result in results if not result.passed]
    if json:
        print_json(
            {
                "checkpoint": checkpoint,
                "activation": model.config.activation,
                "atol": atol,
                "passed": not failed,
                "max_abs_difference": max(result.max_abs_difference for result in results),
                "comparisons": [dataclasses.asdict(result) for result in results],
            }
        )
    else:
        from rich.table import Table

        table = Table("golden", "array", "max abs difference", "", box=None)
        for result in results:
            mark = "[green]ok[/]" if result.passed else "[red]FAILED[/]"
            table.add_row(
                escape(result.golden), result.array, f"{result.max_abs_difference:.2e}", mark
            )
        console.print(table)
    if failed:
        raise VerificationError(
            f"{len(failed)} of {len(results)} arrays differ by more than {atol:g}"
        )
