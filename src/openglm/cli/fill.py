"""`glm fill`: fill the blanks of a text."""

from __future__ import annotations

import dataclasses
import time
from itertools import zip_longest
from typing import Annotated

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
    )(fill)


def fill(
    first: Annotated[str, typer.Argument(metavar="[MODEL] TEXT", show_default=False)],
    second: Annotated[str | None, typer.Argument(hidden=True)] = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    repetition_penalty: options.RepetitionPenalty = None,
    no_repeat_ngram_size: options.NoRepeatNgramSize = None,
    min_tokens: options.MinTokens = None,
    max_tokens: options.MaxTokens = None,
    num_beams: options.NumBeams = None,
    length_penalty: options.LengthPenalty = None,
    seed: options.Seed = None,
    tokenizer: options.TokenizerFolder = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
) -> None:
    """Fills the blanks of a text; greedy unless sampling options are given."""
    sampling = options.sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        no_repeat_ngram_size=no_repeat_ngram_size,
        min_tokens=min_tokens,
        max_tokens=max_tokens,
        num_beams=num_beams,
        length_penalty=length_penalty,
        seed=seed,
    )
    name, text = options.model_and_text(first, second)
    from openglm.cli.output import console, print_json
    from openglm.loading import load

    model = load(name, dtype=dtype, device=device, tokenizer=tokenizer)
    start = time.perf_counter()
    filled = model.fill(text, **sampling)
    seconds = time.perf_counter() - start
    tokens = sum(len(blank.token_ids) for blank in filled.blanks)
    if json:
        print_json(
            {
                "model": name,
                "text": filled.text,
                "blanks": [dataclasses.asdict(blank) for blank in filled.blanks],
                "fragments": filled.fragments,
                "seed": filled.seed,
                "tokens_per_s": tokens / seconds,
            }
        )
        return
    shown = highlighted(filled.fragments, [blank.text for blank in filled.blanks])
    console.print(shown, soft_wrap=True)
    console.print(Text(f"{tokens} tokens, {tokens / seconds:.0f} tokens/s", style="dim"))


def highlighted(fragments: list[str], blanks: list[str]) -> Text:
    """A text with its blanks filled; what the model wrote is in colour."""
    out = Text(tab_size=1)
    for fragment, blank in zip_longest(fragments, blanks, fillvalue=""):
        out.append(fragment)
        out.append(blank, style="bold green")
    return out
