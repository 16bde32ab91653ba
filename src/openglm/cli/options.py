"""Options that several verbs share, and what they mean together."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from openglm.cli.language import say
from openglm.errors import UsageError

Json = Annotated[bool, typer.Option("--json", help=say("Machine-readable output.", "输出 JSON。"))]
Dtype = Annotated[
    str,
    typer.Option(help=say("auto, float32, bfloat16 or float16.", "数值类型：auto、float32 等。")),
]
Device = Annotated[str, typer.Option(help=say("auto, cpu, cuda, cuda:N.", "设备。"))]
TokenizerFolder = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help=say("Folder of the vocabulary, if not beside the weights.", "词表所在的文件夹。"),
    ),
]
Temperature = Annotated[float | None, typer.Option(help=say("0 = greedy.", "采样温度，0 为贪心。"))]
TopK = Annotated[int | None, typer.Option(help=say("Keep the k best; 0 = all.", "只保留前 k 个。"))]
TopP = Annotated[
    float | None, typer.Option(help=say("Nucleus probability; 1 = all.", "核采样概率。"))
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help=say("Above 1 discourages repeats.", "重复惩罚，1 为关闭。"))
]
NoRepeatNgramSize = Annotated[
    int | None,
    typer.Option(help=say("Never repeat an n-gram; 0 = off.", "禁止重复的 n 元组长度。")),
]
MinTokens = Annotated[
    int | None, typer.Option(help=say("Shortest blank, in tokens.", "每个空至少的词元数。"))
]
MaxTokens = Annotated[
    int | None, typer.Option(help=say("Longest blank, in tokens.", "每个空至多的词元数。"))
]
NumBeams = Annotated[int | None, typer.Option(help=say("Beam search width.", "束搜索宽度。"))]
LengthPenalty = Annotated[
    float | None, typer.Option(help=say("Length exponent of beam scores.", "束搜索长度惩罚。"))
]
Seed = Annotated[int | None, typer.Option(help=say("Repeats a sampled result.", "随机种子。"))]


def sampling(**options: Any) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def model_and_text(first: str, second: str | None) -> tuple[str, str]:
    """`TEXT` or `MODEL TEXT`; a text of `-` is read from standard input."""
    model, text = ("mini", first) if second is None else (first, second)
    if text != "-":
        return model, text
    try:
        return model, sys.stdin.read().rstrip("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8: {error}") from error
