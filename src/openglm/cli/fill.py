"""`glm fill`: fill the blanks of a text."""

from __future__ import annotations

import dataclasses
import time
from itertools import zip_longest
from typing import Annotated, Any

import typer
from rich.text import Text

from openglm.cli import options
from openglm.cli.language import say


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "fill",
        help=say(
            r"Fill \[MASK] (short), \[sMASK] (sentence) and \[gMASK] (long) in a text.",
            r"填空：\[MASK] 短语，\[sMASK] 句子，\[gMASK] 长文。",
        ),
    )(options.takes_sampling(fill))


def fill(
    words: Annotated[list[str], typer.Argument(metavar="[MODEL] TEXT", show_default=False)],
    tokenizer: options.TokenizerFolder = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Fills the blanks of a text; greedy unless sampling options are given."""
    name, text = options.model_and_text(words)
    from openglm.cli.output import console, print_json
    from openglm.loading import load

    model = load(name, dtype=dtype, device=device, tokenizer=tokenizer)
    start = time.perf_counter()
    filled = model.fill(text, **sampling)
    seconds = time.perf_counter() - start
    results = (filled, *filled.others)
    tokens = sum(len(blank.token_ids) for one in results for blank in one.blanks)
    if json:
        print_json(
            {
                "model": name,
                **dataclasses.asdict(filled),
                "tokens_per_s": tokens / seconds,
            }
        )
        return
    for one in results:
        shown = highlighted(one.fragments, [blank.text for blank in one.blanks])
        console.print(shown, soft_wrap=True)
    console.print(
        Text(f"{tokens} token{'s' * (tokens != 1)}, {tokens / seconds:.0f} tokens/s", style="dim")
    )


def highlighted(fragments: list[str], blanks: list[str]) -> Text:
    """A text with its blanks filled; what the model wrote is in colour."""
    out = Text(tab_size=1)
    for fragment, blank in zip_longest(fragments, blanks, fillvalue=""):
        out.append(fragment)
        out.append(blank, style="bold green")
    return out
