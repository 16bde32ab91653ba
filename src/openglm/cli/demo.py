"""`glm demo`: the guided first minute. The texts are prompts; every answer is computed now."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.fill import highlighted
from openglm.cli.language import say

if TYPE_CHECKING:
    from openglm.language_model import LanguageModel


@dataclass(frozen=True, slots=True)
class Scene:
    """Prompts that show one ability."""

    title: str
    texts: tuple[str, ...]


FILL_SCENES = (
    Scene(
        say("Short blanks  [MASK]", "短语填空  [MASK]"),
        (
            "床前明月光，疑是[MASK]。举头望明月，低头[MASK]。",
            "海内存知己，天涯[MASK]。",
            "Tom is a very good [MASK].",
            "He opened the [MASK] and went out.",
            "今天天气很[MASK]。",
        ),
    ),
    Scene(
        say("Sentence blanks  [sMASK]", "句子填空  [sMASK]"),
        (
            "春眠不觉晓，处处闻啼鸟。\n[sMASK]",
            "English: Where do you live?\n中文：[sMASK]",
        ),
    ),
    Scene(
        say("Short translations  [gMASK]", "短句翻译  [gMASK]"),
        (
            "English: I don't know what to do.\n中文：[gMASK]",
            "English: I have two cats.\n中文：[gMASK]",
            "中文：你要去哪儿？\nEnglish: [gMASK]",
            "中文：今天很热。\nEnglish: [gMASK]",
        ),
    ),
)
GENERATE_TITLE = say("Long generation", "长文续写")
YOUR_TURN = say(
    'Your turn:\n  glm fill "Tom and Mary are [MASK]."\n  glm generate "Once upon a time"',
    '轮到你了：\n  glm fill "我喜欢[MASK]。"\n  glm generate "两个黄鹂鸣翠柳，"',
)
PROMPTS = ("空山新雨后，", "少小离家老大回，", "Once upon a time there was a king who")


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("demo", help=say("The guided first minute.", "一分钟入门演示。"))(demo)


def demo(
    model: Annotated[str, typer.Argument(metavar="[MODEL]")] = "mini",
    json: options.Json = False,
) -> None:
    """Fills and continues texts in both languages, and says how fast."""
    from openglm.cli.output import console, print_json, size
    from openglm.loading import load

    started = time.perf_counter()
    glm = load(model)
    seconds = time.perf_counter() - started
    if json:
        answers = list(_answers(glm))
        print_json({"model": model, "results": [dataclasses.asdict(a) for a in answers]})
        return
    console.print(
        f"[bold]openglm[/] · {escape(model)}: {glm.config.num_parameters / 1e6:.1f} M parameters, "
        f"{size(glm.config.num_parameters * 4)} in float32, loaded in {seconds:.1f} s"
    )
    title, tokens, elapsed = "", 0, 0.0
    for answer in _answers(glm):
        if answer.title != title:
            title = answer.title
            console.print(f"\n[bold cyan]{escape(title)}[/]\n")
        console.print(highlighted(answer.fragments, answer.blanks), soft_wrap=True)
        console.print()
        tokens += answer.tokens
        elapsed += answer.seconds
    console.print(f"[dim]{tokens} tokens in {elapsed:.1f} s: {tokens / elapsed:.0f} tokens/s[/]")
    console.print(f"[dim]{escape(YOUR_TURN)}[/]")


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the model wrote into one prompt."""

    title: str
    prompt: str
    fragments: list[str]
    blanks: list[str]
    tokens: int
    seconds: float


def _answers(glm: LanguageModel) -> Iterator[_Answer]:
    room = glm.config.max_position_embeddings - 1
    for scene in FILL_SCENES:
        for text in scene.texts:
            begin = time.perf_counter()
            filled = glm.fill(text, max_tokens=min(48, room))
            seconds = time.perf_counter() - begin
            tokens = sum(len(blank.token_ids) for blank in filled.blanks)
            blanks = [blank.text for blank in filled.blanks]
            yield _Answer(scene.title, text, filled.fragments, blanks, tokens, seconds)
    for prompt in PROMPTS:
        begin = time.perf_counter()
        made = glm.generate(prompt, temperature=0.7, top_k=20, seed=7, max_tokens=min(120, room))
        seconds = time.perf_counter() - begin
        tokens = len(made.token_ids)
        yield _Answer(GENERATE_TITLE, prompt, [prompt, ""], [made.text], tokens, seconds)
