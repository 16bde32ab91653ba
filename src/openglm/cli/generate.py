"""`glm generate`: continue a text, streamed."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated, Any

import typer

from openglm.cli import options
from openglm.cli.language import say


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("generate", help=say("Continue a text.", "续写文本。"))(
        options.takes_sampling(generate)
    )


def generate(
    words: Annotated[list[str], typer.Argument(metavar="[MODEL] PROMPT", show_default=False)],
    tokenizer: options.TokenizerFolder = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    json: options.Json = False,
    *,
    sampling: dict[str, Any],
) -> None:
    """Continues a text, by the official sampling defaults of each model unless told otherwise."""
    name, prompt = options.model_and_text(words)
    from openglm.cli.output import print_json
    from openglm.loading import load

    model = load(name, dtype=dtype, device=device, tokenizer=tokenizer)
    if json:
        start = time.perf_counter()
        completion = model.generate(prompt, **sampling)
        tokens = sum(len(one.token_ids) for one in (completion, *completion.others))
        rate = tokens / (time.perf_counter() - start)
        print_json(
            {
                "model": name,
                "prompt": prompt,
                **dataclasses.asdict(completion),
                "tokens_per_s": rate,
            }
        )
        return
    pieces = model.stream(prompt, **sampling)
    sys.stdout.write(prompt)
    sys.stdout.flush()
    for piece in pieces:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
