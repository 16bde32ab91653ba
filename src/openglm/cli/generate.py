"""`glm generate`: continue a text, streamed."""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated

import typer

from openglm.cli import options
from openglm.cli.language import say


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command("generate", help=say("Continue a text.", "续写文本。"))(generate)


def generate(
    first: Annotated[str, typer.Argument(metavar="[MODEL] PROMPT", show_default=False)],
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
    """Continues a text; temperature 0.9 and top-k 40 unless other sampling options are given."""
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
    name, prompt = options.model_and_text(first, second)
    from openglm.cli.output import print_json
    from openglm.loading import load

    model = load(name, dtype=dtype, device=device, tokenizer=tokenizer)
    if json:
        start = time.perf_counter()
        completion = model.generate(prompt, **sampling)
        rate = len(completion.token_ids) / (time.perf_counter() - start)
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
