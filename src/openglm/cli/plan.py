"""`glm plan`: will it fit, how fast at most, with the arithmetic shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.planning import Plan


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("plan", help=say("Will it fit, and how fast?", "能否放得下，速度如何？"))(plan)


def plan(
    model: Annotated[str, typer.Argument(metavar="MODEL")],
    gpus: Annotated[
        str | None,
        typer.Option(help=say("Like 24GiB or 4x24GiB; else this CPU.", "如 4x24GiB，否则为本机。")),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(help=say("Tokens of prompt and answer.", "提示词与回答的总长度。")),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help=say("Sequences at once.", "并行序列数。"))] = 1,
    dtype: Annotated[
        str | None,
        typer.Option(
            help=say("float32, bfloat16, float16, int8, int4, int4-g64 ...", "数值类型。")
        ),
    ] = None,
    kv_dtype: Annotated[
        str,
        typer.Option(
            help=say(
                "Of keys and values: float32, bfloat16, float16, int8; auto = as computed.",
                "键值缓存的数值类型：float32、bfloat16、float16、int8；auto 与计算相同。",
            )
        ),
    ] = "auto",
    train: Annotated[
        str | None, typer.Option(help=say("full, lora, ptuning.", "训练方法。"))
    ] = None,
    json: options.Json = False,
) -> None:
    """Prints the memory of running (or training) a model, part by part; nothing is loaded."""
    from openglm.cli.architecture import find_architecture
    from openglm.cli.output import print_json
    from openglm.errors import UsageError
    from openglm.kernels.cpu import why_not
    from openglm.planning import Gpus, plan_inference, plan_training
    from openglm.process import available_bytes

    config, origin = find_architecture(model)
    cards = None if gpus is None else Gpus.parse(gpus)
    device: Any = "cpu" if cards is None else "gpu"
    count = 1 if cards is None else cards.count
    room = available_bytes() if cards is None else cards.bytes_each
    is_compiled = cards is not None or why_not() is None
    floats = "bfloat16" if is_compiled else "float32"
    chosen = dtype or origin.get("quantization") or floats
    if train is None:
        found = plan_inference(
            config, chosen, context, batch, device, count, room, is_compiled, kv_dtype
        )
    elif kv_dtype != "auto":
        raise UsageError(
            f"--kv-dtype {kv_dtype} has no effect on --train: training caches nothing",
            hint="leave it out",
        )
    elif count > 1:
        raise UsageError("--train is planned for one device", hint="leave out the number of GPUs")
    elif train == "full" and (dtype or "quantization" in origin):
        raise UsageError(
            "--train full trains float32 weights", hint="take float weights, no --dtype"
        )
    else:
        found = plan_training(config, train, chosen, context, batch, device, room)
    facts = {
        "model": model,
        "dtype": chosen,
        "kv_dtype": kv_dtype,
        "devices": count,
        "train": train,
    }
    if json:
        print_json(facts | _facts(found))
        return
    _tell(str(origin.get("title", model)), found, count, cards is None)
    if train is None:
        _tell_speed(config, chosen, count, 2 if is_compiled else 4)


def _facts(found: Plan) -> dict[str, Any]:
    return {
        "parts": {part.name: part.bytes for part in found.parts},
        "bytes_per_device": found.total,
        "available_bytes": found.available,
        "fits": found.fits,
        "notes": found.notes,
    }


def _tell(title: str, found: Plan, count: int, is_cpu: bool) -> None:
    from rich.table import Table

    from openglm.cli.output import console, size

    where = say("this machine", "本机") if is_cpu else f"{count} x GPU"
    console.print(f"[bold]{escape(title)}[/] [dim]{where}[/]")
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for part in found.parts:
        table.add_row(f"  {part.name}", size(part.bytes), part.why)
    each = say("each", "每卡") if count > 1 else ""
    table.add_row(
        "  [bold]" + say("together", "合计") + "[/]", f"[bold]{size(found.total)}[/]", each
    )
    console.print(table)
    for note in found.notes:
        console.print(note, style="dim", soft_wrap=True)
    if found.available is not None:
        room = size(found.available)
        verdict = (
            f"[green]{say('fits', '放得下')}[/]"
            if found.fits
            else f"[red]{say('does not fit', '放不下')}[/]"
        )
        console.print(f"{verdict}: {size(found.total)} {say('of', '/')} {room}")


def _tell_speed(config: Any, dtype: str, count: int, kept_width: int) -> None:
    from openglm.cli.output import console, size
    from openglm.memory import WIDTHS, streamed_bytes

    read = streamed_bytes(config, dtype, WIDTHS.get(dtype, kept_width)) / count
    english = f"Each new token reads {size(read)} of weights"
    chinese = f"每个新词元读取权重 {size(read)}"
    if count > 1:
        english += " on each GPU"
        chinese += "（每卡）"
    console.print(
        say(
            f"{english}: at B GB/s of memory bandwidth, at most B / {read / 1e9:.3g} tokens/s "
            "for one sequence (glm doctor measures B)",
            f"{chinese}：内存带宽为 B GB/s 时，单序列至多 B / {read / 1e9:.3g} 词元/秒"
            "（glm doctor 可测 B）",
        ),
        style="dim",
        soft_wrap=True,
    )
