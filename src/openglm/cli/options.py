"""Options that several verbs share, and what they mean together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import Parameter, Signature, signature
from typing import Annotated, Any, get_type_hints

import typer

from openglm.cli.language import say
from openglm.errors import UsageError


def _option(kind: type, english: str, chinese: str) -> Any:
    """An option of this type that may be left out."""
    return Annotated[kind | None, typer.Option(help=say(english, chinese))]


DTYPE_HELP = "auto, float32, bfloat16, float16, int8, int4, int4-g64 ..."
Json = Annotated[bool, typer.Option("--json", help=say("Machine-readable output.", "输出 JSON。"))]
Dtype = Annotated[
    str,
    typer.Option(help=say(DTYPE_HELP, "数值类型：" + DTYPE_HELP)),
]
Device = Annotated[
    str, typer.Option(help=say("auto, cpu, cuda, cuda:N.", "设备：auto、cpu、cuda、cuda:N。"))
]
TokenizerFolder = Annotated[
    str | None,
    typer.Option(
        "--tokenizer",
        help=say("Folder of the vocabulary, if not beside the weights.", "词表所在的文件夹。"),
    ),
]
SAMPLING: dict[str, Any] = {
    "temperature": _option(float, "0 = greedy.", "采样温度，0 为贪心。"),
    "top_k": _option(int, "Keep the k best; 0 = all.", "只保留前 k 个，0 为全部。"),
    "top_p": _option(float, "Nucleus probability; 1 = all.", "核采样概率，1 为全部。"),
    "min_p": _option(float, "Least share of the likeliest token.", "最小相对概率，0 为关闭。"),
    "typical_p": _option(float, "Locally typical mass; 1 = all.", "典型采样概率，1 为全部。"),
    "repetition_penalty": _option(float, "Above 1 discourages repeats.", "重复惩罚，1 为关闭。"),
    "presence_penalty": _option(float, "For tokens that were written.", "存在惩罚，0 为关闭。"),
    "frequency_penalty": _option(float, "For each time they were.", "频率惩罚，0 为关闭。"),
    "no_repeat_ngram_size": _option(
        int, "Never repeat an n-gram; 0 = off.", "禁止重复的 n 元组长度。"
    ),
    "bad_words": _option(list[str], "Never written; may be repeated.", "禁用的词，可多次给出。"),
    "stop": _option(list[str], "Ends the text; may be repeated.", "停止词，可多次给出。"),
    "min_tokens": _option(int, "Shortest blank, in tokens.", "每个空至少的词元数。"),
    "max_tokens": _option(int, "Longest blank, in tokens.", "每个空至多的词元数。"),
    "n": _option(int, "So many results.", "结果的个数。"),
    "best_of": _option(
        int, "Write so many, keep the n likeliest.", "写出若干个，保留最优的 n 个。"
    ),
    "logprobs": _option(int, "Alternatives per token; for JSON.", "每个词元的候选数，用于 JSON。"),
    "json_schema": _option(str, "JSON schema of the text.", "输出须符合的 JSON Schema。"),
    "regex": _option(str, "Pattern of the text.", "输出须匹配的正则表达式。"),
    "grammar": _option(str, "EBNF grammar of the text.", "输出须符合的 EBNF 文法。"),
    "choice": _option(list[str], "One of these; to be repeated.", "只能选其一，须多次给出。"),
    "num_beams": _option(int, "Beam search width.", "束搜索宽度。"),
    "length_penalty": _option(float, "Length exponent of beam scores.", "束搜索长度惩罚。"),
    "seed": _option(int, "Repeats a sampled result.", "随机种子。"),
}
"""Sampling options: those of `SamplingParams`."""


def takes_sampling(verb: Callable[..., None]) -> Callable[..., None]:
    """Adds the sampling options to a verb, which gets those that were given as `sampling`."""

    def command(**arguments: Any) -> None:
        given = {name: arguments.pop(name) for name in SAMPLING}
        sampling = {n: value for n, value in given.items() if value not in (None, [])}
        if "logprobs" in sampling and not arguments.get("json"):
            raise UsageError(
                "--logprobs shows nothing without --json", hint="fill and generate have it"
            )
        verb(**arguments, sampling=sampling)

    hints = get_type_hints(verb, include_extras=True)
    own = [p for p in signature(verb).parameters.values() if p.name != "sampling"]
    parameters = [p.replace(annotation=hints[p.name]) for p in own] + [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None, annotation=kind)
        for name, kind in SAMPLING.items()
    ]
    command.__doc__ = verb.__doc__
    command.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def model_and_text(words: list[str]) -> tuple[str, str]:
    """`TEXT` or `MODEL TEXT`; a text of `-` is read from standard input."""
    if len(words) > 2:
        raise UsageError(
            f"{len(words)} arguments, where a text, or a model and a text, are expected",
            hint="put the text in quotes",
        )
    model, text = ("mini", *words) if len(words) == 1 else words
    if text == "-":
        try:
            text = sys.stdin.read().rstrip("\n")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8: {error}") from error
    if not text.strip():
        raise UsageError("the text is empty", hint="write something to continue or to fill")
    return model, text
