"""`glm quantize`: to INT8 and INT4, with a report on size, quality and speed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say
from openglm.errors import UsageError, suggest
from openglm.scheme import INCLUDED, Scheme

if TYPE_CHECKING:
    from openglm.quantize.report import Report

GROUP_SIZE = 32
"""Columns that share a scale unless asked otherwise: half a bit per weight for the best quality."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("quantize", help=say("Quantize, with a report.", "量化模型，并给出报告。"))(
        quantize
    )


Target = Annotated[
    Path,
    typer.Argument(
        metavar="DST",
        help=say(
            "New folder; with several widths, of a folder for each.",
            "新文件夹；多种位宽时，其中每种一个文件夹。",
        ),
    ),
]
Bits = Annotated[str, typer.Option(help=say("8, 4, or 8,4.", "位宽：8、4 或 8,4。"))]
GroupSize = Annotated[
    int,
    typer.Option(
        help=say(
            "Columns that share a scale: 32, 64, 128; 0 = a row, as officially.",
            "共用缩放系数的列数：32、64、128；0 为整行（官方方案）。",
        )
    ),
]
Symmetric = Annotated[
    bool,
    typer.Option(
        "--symmetric/--asymmetric",
        help=say("Asymmetric: a minimum per group.", "非对称：每组另存最小值。"),
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        metavar="TEXTFILE",
        help=say("Round by GPTQ on this text.", "用此文本校准（GPTQ）。"),
    ),
]
Samples = Annotated[
    int, typer.Option(min=1, help=say("Passages of it, at most.", "校准段落数上限。"))
]
Order = Annotated[
    bool,
    typer.Option(
        "--act-order",
        help=say("GPTQ: columns with the largest inputs first.", "GPTQ：先处理输入最大的列。"),
    ),
]
Include = Annotated[
    str,
    typer.Option(
        metavar="PARTS",
        help=say("Besides the blocks: embeddings,head.", "另外量化：embeddings,head。"),
    ),
]
Evaluate = Annotated[
    Path | None,
    typer.Option(
        "--eval",
        metavar="TEXTFILE",
        help=say(
            "Measure quality on this text, not on the one that comes along.",
            "在此文本上衡量质量，而不用自带文本。",
        ),
    ),
]
NoEvaluate = Annotated[
    bool, typer.Option("--no-eval", help=say("Do not measure quality.", "不衡量质量。"))
]


def quantize(
    source: Annotated[str, typer.Argument(metavar="SRC")],
    target: Target,
    bits: Bits,
    group_size: GroupSize = GROUP_SIZE,
    symmetric: Symmetric = True,
    calibrate: Calibrate = None,
    samples: Samples = 64,
    activation_order: Order = False,
    include: Include = "",
    evaluate: Evaluate = None,
    no_evaluate: NoEvaluate = False,
    tokenizer: options.TokenizerFolder = None,
    json: options.Json = False,
) -> None:
    """Quantizes a checkpoint as a stream, and measures what became of it."""
    from openglm.cli.output import console, print_json
    from openglm.home import find_model
    from openglm.quantize import HELD_OUT, Job, quantize
    from openglm.tokenizers import find_tokenizer, require_tokenizer

    if evaluate is not None and no_evaluate:
        raise UsageError("--eval and --no-eval contradict each other", hint="give one of them")
    schemes = _schemes(bits, group_size, symmetric, include)
    folder = find_model(source)
    job = Job(
        source=folder,
        target=target,
        schemes=schemes,
        tokenizer=require_tokenizer(Path(tokenizer), folder)
        if tokenizer
        else find_tokenizer(folder),
        calibrate=calibrate,
        samples=samples,
        activation_order=activation_order,
        evaluate=None if no_evaluate else evaluate or HELD_OUT,
    )
    if json:
        reports = quantize(job)
        print_json({"target": str(target), "reports": [report.to_dict() for report in reports]})
        return
    reports = quantize(job, lambda text: console.print(f"[dim]{text} ...[/]"))
    _tell(reports)
    console.print(f"{say('written to', '已写入')} {escape(str(target))}")


def _schemes(bits: str, group_size: int, symmetric: bool, include: str) -> list[Scheme]:
    widths = [word.strip() for word in bits.split(",")]
    parts = [word.strip() for word in include.split(",")] if include else []
    for word in widths:
        if not word.isdecimal():
            raise UsageError(f"--bits {bits!r} is not understood", hint="8, 4, or 8,4")
    for part in parts:
        if part not in INCLUDED:
            raise UsageError(f"--include {part!r} is unknown", hint=suggest(part, INCLUDED))
    extra = {part: part in parts for part in INCLUDED}
    return [
        Scheme(bits=int(word), group_size=group_size, symmetric=symmetric, **extra)
        for word in widths
    ]


def _tell(reports: list[Report]) -> None:
    from rich.table import Table

    from openglm.cli.output import console, size

    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("", say("bits", "位"), say("size", "大小"), say("tokens/s", "词元/秒")):
        table.add_column(column, no_wrap=True, justify="right" if column else "left")
    table.add_column(say("perplexity", "困惑度"), justify="right")
    table.add_column("KL", justify="right")
    table.add_column("KL p99", justify="right")
    first = reports[0]
    plain = first.quality.source_perplexity if first.quality else None
    share = first.source_bytes / first.weight_bytes * first.bits_per_weight
    table.add_row(
        say("source", "原模型"),
        f"{share:.2f}",
        size(first.source_bytes),
        _number(first.source_tokens_per_s, ".1f"),
        _number(plain, ".3f"),
    )
    for report in reports:
        quality = report.quality
        worse = f" ({quality.perplexity_change:+.2%})" if quality else ""
        table.add_row(
            report.scheme,
            f"{report.bits_per_weight:.2f}",
            size(report.weight_bytes),
            _number(report.tokens_per_s, ".1f"),
            _number(quality.perplexity if quality else None, ".3f") + worse,
            _number(quality.kl_mean if quality else None, ".5f"),
            _number(quality.kl_p99 if quality else None, ".4f"),
        )
    console.print(table)
    if first.quality is None:
        words = f"quality: not measured, {first.no_quality}", f"质量：未衡量（{first.no_quality}）"
    else:
        count, text = first.quality.tokens, first.text
        words = f"quality: of {count:,} tokens of {text}", f"质量：{text} 的 {count:,} 个词元"
    console.print(say(*words), style="dim")


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
