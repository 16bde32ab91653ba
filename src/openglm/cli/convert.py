"""`glm convert`: between checkpoint layouts, exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.language import say
from openglm.config import ModelConfig
from openglm.errors import UsageError, suggest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from openglm.checkpoints import Source
    from openglm.tokenizers import Tokenizer

GGUF = "gguf"
LAYOUTS = ("openglm", "hf", "megatron", "sat", GGUF)


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("convert", help=say("Convert between checkpoint layouts.", "转换模型文件的格式。"))(
        convert
    )


Target = Annotated[
    Path,
    typer.Argument(
        metavar="DST",
        help=say(
            "New folder. gguf: a new FILE.gguf, or a folder for SRC-TYPE.gguf.",
            "新文件夹。gguf：新文件 FILE.gguf，或存放 SRC-TYPE.gguf 的文件夹。",
        ),
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        help=say(
            "auto keeps the stored one; others make floats of groups. "
            "gguf: also int8 (Q8_0), int4 (Q4_0).",
            "auto 为保持原类型；其他类型会还原分组量化。gguf 另有 int8（Q8_0）、int4（Q4_0）。",
        )
    ),
]


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC")],
    target: Target,
    to: Annotated[str, typer.Option(help=", ".join(LAYOUTS))],
    tp: Annotated[
        int,
        typer.Option(min=1, help=say("Tensor-parallel ranks (megatron, sat).", "张量并行份数。")),
    ] = 1,
    dtype: Dtype = "auto",
    tokenizer: options.TokenizerFolder = None,
    json: options.Json = False,
) -> None:
    """Converts a checkpoint as a stream; names and shapes are checked, values copied exactly."""
    from openglm.checkpoints import open_checkpoint
    from openglm.cli.output import console, print_json
    from openglm.home import find_model
    from openglm.tokenizers import find_tokenizer, require_tokenizer

    if to not in LAYOUTS:
        raise UsageError(f"unknown checkpoint layout {to!r}", hint=suggest(to, LAYOUTS))
    if to == GGUF and tp != 1:
        raise UsageError(f"--tp {tp}: GGUF is not split over ranks", hint="leave it out")
    folder = find_model(source)
    opened = open_checkpoint(folder)
    vocabulary = require_tokenizer(Path(tokenizer), folder) if tokenizer else find_tokenizer(folder)
    target, stored = _write(opened, vocabulary, target, to, tp, dtype)
    opened.warn_of_differing_heads()
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
    for note in _notes(opened.config, to):
        console.print(f"[yellow]note:[/] {note}")
    console.print(
        f"{opened.layout} -> {to}: {opened.config.num_parameters:,} parameters, {stored}, "
        f"{tp} rank(s), in {escape(str(target))}"
    )


def _write(
    opened: Source, tokenizer: Tokenizer | None, target: Path, to: str, tp: int, dtype: str
) -> tuple[Path, str]:
    """Writes the new files; where they are, and the type of their weights."""
    import torch

    from openglm.checkpoints import export_gguf, save_checkpoint
    from openglm.loading import parse_dtype

    if to == GGUF:
        name = opened.folder.resolve().name
        weights = _weights(opened, None if dtype == "auto" else torch.float32)
        file = export_gguf(target, opened.config, weights, dtype, tokenizer=tokenizer, name=name)
        return file.path, file.type
    written = None if dtype == "auto" else parse_dtype(dtype)
    weights = _weights(opened, written)
    save_checkpoint(
        target,
        opened.config,
        weights,
        to,
        dtype=written,
        tokenizer=tokenizer,
        num_ranks=tp,
        about=opened.metadata or {"converted_from": opened.layout},
        token_ids=opened.token_ids,
    )
    kept = weights is opened and opened.scheme is not None and not opened.scheme.is_official
    if kept and opened.scheme is not None:
        return target, opened.scheme.name
    return target, str(written or opened.stored_dtype).removeprefix("torch.")


def _weights(opened: Source, dtype: torch.dtype | None) -> Mapping[str, Tensor]:
    """What is written: as stored, or floats of group-wise weights where a type is asked for."""
    from openglm.quant.transform import DequantizedWeights

    if dtype is None or opened.scheme is None or opened.scheme.is_official:
        return opened
    return DequantizedWeights(opened, opened.config, opened.scheme, dtype)


def _notes(config: ModelConfig, to: str) -> Iterator[str]:
    """What the code that reads the new files computes otherwise than the official one."""
    is_glm = config.position in ("learned_2d", "learned")
    if to == "hf" and is_glm and config.activation == "gelu_tanh":
        yield (
            "these weights were made with the tanh GELU; the official Hugging Face code computes "
            "the exact one, which changes logits by about 1e-3"
        )
    if to == GGUF and config.rotary_compute != "float32":
        yield (
            f"this model was released with rotary angles in {config.rotary_compute}; llama.cpp "
            "computes exact ones, as openglm does with exact_rotary"
        )
