"""`glm bench`: how fast a model is on this machine, and how much memory it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from openglm.cli import options
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.benchmark import Speed


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("bench", help=say("Measure speed and memory.", "测量速度与内存。"))(bench)


def bench(
    model: Annotated[str, typer.Argument(metavar="[MODEL]")] = "mini",
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help=say("Any preset, without its files.", "用随机权重测任意已知模型，无需文件。"),
        ),
    ] = False,
    prompt_tokens: Annotated[
        int, typer.Option(min=1, help=say("Length of the prompts.", "提示词长度。"))
    ] = 128,
    new_tokens: Annotated[
        int, typer.Option(min=1, help=say("Tokens decoded behind each.", "生成长度。"))
    ] = 32,
    batch: Annotated[
        list[int] | None,
        typer.Option(min=1, help=say("Sequences at once; repeatable.", "并行序列数，可重复。")),
    ] = None,
    repeats: Annotated[
        int, typer.Option(min=1, help=say("Passes; the median counts.", "重复次数，取中位数。"))
    ] = 3,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Loads a model, reads random prompts and decodes behind them."""
    from time import perf_counter

    import openglm
    from openglm.benchmark import measure
    from openglm.cli.output import console, print_json
    from openglm.process import peak_bytes, reset_peak, resident_bytes

    _check_memory(model, dtype, device, prompt_tokens + new_tokens, max([1, *(batch or [])]))
    before = resident_bytes()
    can_reset = reset_peak()
    start = perf_counter()
    loaded = openglm.load(model, dtype=dtype, device=device, random_weights=random_weights)
    loading: dict[str, Any] = {
        "seconds": perf_counter() - start,
        "weight_bytes": sum(p.nbytes for p in loaded.network.parameters()),
        "process_bytes": {
            "before": before,
            "after": resident_bytes(),
            "peak": peak_bytes() if can_reset else None,
        },
    }
    speed = measure(loaded.network, prompt_tokens, new_tokens, batch or [], repeats)
    if json:
        print_json({"model": loaded.name, "dtype": dtype, "load": loading, **_facts(speed)})
        return
    for line in _lines(loading, speed):
        console.print(line)


def _check_memory(model: str, dtype: str, device: str, context: int, batch_size: int) -> None:
    """Refuses what the system would kill; a GPU says so itself."""
    from openglm.cli.architecture import find_architecture
    from openglm.cli.output import size
    from openglm.errors import UsageError
    from openglm.kernels.cpu import why_not
    from openglm.loading import pick_device
    from openglm.planning import plan_inference
    from openglm.process import available_bytes

    room = available_bytes()
    if room is None or pick_device(device).type != "cpu":
        return
    config, origin = find_architecture(model)
    is_compiled = why_not() is None
    floats = "bfloat16" if is_compiled else "float32"
    chosen = origin.get("quantization", floats) if dtype == "auto" else dtype
    plan = plan_inference(config, chosen, context, batch_size, "cpu", 1, room, is_compiled)
    if not plan.fits:
        raise UsageError(
            f"{model} in {chosen} needs {size(plan.total)}; {size(room)} are free here",
            hint=f"--dtype int4 or int8 takes less: glm plan {model} --dtype int4",
        )


def _facts(speed: Speed) -> dict[str, Any]:
    return {
        "prompt_tokens": speed.prompt_tokens,
        "new_tokens": speed.new_tokens,
        "prefill_s": speed.prefill_s,
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "decode_tokens_per_s": {str(size): speed.tokens_per_s(size) for size in speed.decode_s},
        "streamed_bytes_per_step": speed.streamed_bytes,
        "decode_gb_per_s": speed.bytes_per_s / 1e9,
        "memory_gb_per_s": None if (b := speed.memory_bandwidth) is None else b / 1e9,
        "used_bytes": speed.used_bytes,
        "peak_bytes": speed.peak_bytes,
    }


def _lines(loading: dict[str, Any], speed: Speed) -> list[str]:
    from openglm.cli.output import size

    process = loading["process_bytes"]
    peak = f", at most {size(process['peak'])} on the way" if process["peak"] else ""
    lines = [
        f"[bold]load[/]     {loading['seconds']:.1f} s, weights {size(loading['weight_bytes'])}; "
        f"the process went from {size(process['before'])} to {size(process['after'])}{peak}",
        f"[bold]prefill[/]  {speed.prefill_tokens_per_s:,.1f} tokens/s: "
        f"{speed.prompt_tokens} tokens in {speed.prefill_s:.2f} s (TTFT)",
    ]
    share = ""
    if (memory := speed.memory_bandwidth) is not None:
        share = f", {speed.bytes_per_s / memory:.0%} of {memory / 1e9:.1f} measured beside"
    for batch_size in speed.decode_s:
        alone = batch_size == 1
        note = f"{speed.bytes_per_s / 1e9:.1f} GB/s of weights{share}" if alone else "all together"
        name = "decode" if alone else f"batch {batch_size}"
        rate = f"{speed.tokens_per_s(batch_size):,.2f} tokens/s"
        lines.append(f"[bold]{name:<8}[/] {rate}, {note}")
    lines.append(
        f"[bold]memory[/]   {size(speed.used_bytes)} before, "
        f"{size(speed.peak_bytes)} at the peak of the measurement"
    )
    return lines
