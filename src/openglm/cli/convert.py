"""`glm convert`: between checkpoint layouts, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("convert", help=say("Convert between checkpoint layouts.", "转换模型文件的格式。"))(
        convert
    )


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC")],
    target: Annotated[Path, typer.Argument(metavar="DST", help=say("New folder.", "新文件夹。"))],
    to: Annotated[str, typer.Option(help="openglm, hf, megatron, sat")],
    tp: Annotated[
        int, typer.Option(help=say("Tensor-parallel ranks (megatron, sat).", "张量并行份数。"))
    ] = 1,
    dtype: Annotated[
        str, typer.Option(help=say("auto keeps the stored one.", "auto 为保持原类型。"))
    ] = "auto",
    tokenizer: options.TokenizerFolder = None,
    json: options.Json = False,
) -> None:
    """Converts a checkpoint; names and shapes are checked, values are copied bit for bit."""
    from openglm.checkpoints import open_checkpoint, save_checkpoint
    from openglm.cli.output import console, print_json
    from openglm.home import find_model
    from openglm.loading import parse_dtype
    from openglm.tokenizers import find_tokenizer

    folder = find_model(source)
    opened = open_checkpoint(folder)
    weights_dtype = opened.stored_dtype if dtype == "auto" else parse_dtype(dtype)
    save_checkpoint(
        target,
        opened.config,
        opened,
        to,
        dtype=weights_dtype,
        tokenizer=find_tokenizer(Path(tokenizer) if tokenizer else folder),
        num_ranks=tp,
        about=opened.metadata or {"converted_from": opened.layout},
        token_ids=opened.token_ids,
    )
    opened.warn_of_differing_heads()
    stored = str(weights_dtype).removeprefix("torch.")
    if json:
        print_json(
            {
                "source": str(folder),
                "from": opened.layout,
                "target": str(target),
                "to": to,
                "tensor_parallel": tp,
                "dtype": stored,
                "parameters": opened.config.num_parameters,
            }
        )
        return
    is_glm = opened.config.position in ("learned_2d", "learned")
    if to == "hf" and is_glm and opened.config.activation == "gelu_tanh":
        console.print(
            "[yellow]note:[/] these weights were made with the tanh GELU; the official Hugging "
            "Face code computes the exact one, which changes logits by about 1e-3"
        )
    console.print(
        f"{opened.layout} -> {to}: {opened.config.num_parameters:,} parameters, {stored}, "
        f"{tp} rank(s), in {escape(str(target))}"
    )
