"""`glm info`: the known models, or one of them in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from openglm.cli import options
from openglm.cli.architecture import find_architecture, origin_of
from openglm.cli.language import say
from openglm.memory import KEPT_WIDTH, WIDTHS, cache_bytes, weight_bytes

if TYPE_CHECKING:
    from openglm.config import ModelConfig

DTYPES = ("float32", "bfloat16", "int8", "int4")
CONTEXT_SHARES = (16, 4, 1)
"""The table shows contexts of a 16th and a quarter of the positions, and of all."""


def register(app: typer.Typer) -> None:
    """Adds the verb."""
    app.command(
        "info", help=say("Known models, or one in detail.", "列出模型，或详细介绍一个模型。")
    )(info)


def info(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    json: options.Json = False,
) -> None:
    """Lists all presets, or describes a preset, a folder, or mini."""
    if model is None:
        _list(json)
    else:
        _describe(model, json)


def _list(as_json: bool) -> None:
    from openglm.cli.output import console, print_json
    from openglm.registry import presets

    known = presets()
    if as_json:
        print_json(
            {name: _facts(preset.model) | origin_of(preset) for name, preset in known.items()}
        )
        return
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("tokenizer", no_wrap=True)
    table.add_column("objective")
    for name, preset in known.items():
        table.add_row(name, _count(preset.parameters), preset.tokenizer, preset.objective)
    console.print(table)
    console.print("\n[dim]glm info MODEL describes one; `mini` is built in.[/]")


def _describe(name: str, as_json: bool) -> None:
    from openglm.cli.output import console, print_json, size

    config, origin = find_architecture(name)
    stored = origin.get("quantization")
    dtypes = DTYPES if stored in (None, *DTYPES) else (*DTYPES, str(stored))
    facts = _facts(config, dtypes) | origin
    if as_json:
        print_json(facts)
        return
    from rich.table import Table

    console.print(f"[bold]{escape(str(origin.get('title', name)))}[/]")
    for line in in_words(config):
        console.print(f"  {line}")
    if (longest := origin.get("trained_tokens")) is not None:
        words = f"trained on texts of up to {longest:,} tokens", f"训练文本至多 {longest:,} 个词元"
        console.print(f"  {say(*words)}")
    for key in ("quantization", "tokenizer", "objective", "licence", "source"):
        if key in origin:
            console.print(f"  [dim]{key}:[/] {escape(str(origin[key]))}")
    contexts = [config.max_position_embeddings // share for share in CONTEXT_SHARES]
    table = Table(
        "weights", *(f"+ {length:,} tokens" for length in contexts), box=None, header_style="bold"
    )
    for dtype in dtypes:
        weights = weight_bytes(config, dtype)
        width = max(WIDTHS.get(dtype, KEPT_WIDTH), KEPT_WIDTH)
        totals = [size(weights + cache_bytes(config, n, width)) for n in contexts]
        table.add_row(f"{dtype}  {size(weights)}", *totals)
    console.print(table)


def _facts(config: ModelConfig, dtypes: tuple[str, ...] = DTYPES) -> dict[str, Any]:
    return {
        "parameters": config.num_parameters,
        "model": config.to_dict(),
        "weight_bytes": {dtype: weight_bytes(config, dtype) for dtype in (*dtypes, "float16")},
        "cache_bytes_per_token": {
            "float32": cache_bytes(config, 1, 4),
            "float16": cache_bytes(config, 1, 2),
        },
    }


def _count(parameters: int) -> str:
    """1,920,122,880 -> "1.92 B"."""
    is_large = parameters >= 10**9
    return f"{parameters / 1e9:.2f} B" if is_large else f"{parameters / 1e6:.0f} M"


POSITION_WORDS = {
    "learned_2d": "two learned position tables (place in the text, place in the blank)",
    "learned": "one learned position table",
    "rotary": "rotary positions",
    "rotary_2d": "rotary positions, half of each head for the place in the text, half for the "
    "place in the blank",
}
ACTIVATION_WORDS = {
    "gelu_tanh": "GELU (tanh form)",
    "gelu_erf": "GELU (exact)",
    "gelu_sigmoid": "GELU (sigmoid form)",
    "geglu": "GELU gates",
    "swiglu": "SiLU gates",
}
NORM_WORDS = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
RESIDUAL_WORDS = {
    "pre": "pre-norm blocks",
    "sandwich": "blocks with norms before and behind each part",
    "deepnorm": "DeepNorm blocks",
}


def in_words(config: ModelConfig) -> list[str]:
    """The architecture as sentences."""
    c = config
    norm = NORM_WORDS[c.norm]
    heads = f"{c.num_attention_heads} heads of {c.head_dim}"
    if c.kv_heads != c.num_attention_heads:
        heads += f" sharing {c.kv_heads} key/value heads"
    lines = [
        f"{c.num_parameters:,} parameters, vocabulary of {c.vocab_size:,}",
        f"{c.num_layers} {RESIDUAL_WORDS[c.residual]} of width {c.hidden_size}: {norm}, {heads}, "
        f"{norm}, MLP of {c.intermediate_size} with {ACTIVATION_WORDS[c.activation]}",
        f"{POSITION_WORDS[c.position]}, {c.max_position_embeddings} positions",
    ]
    if c.is_rotary:
        turned = f"{c.rotary_width} of {c.head_dim} elements turn, {c.rotary_pairing} pairs"
        exact = c.rotary_compute == c.rotary_frequencies == "float32"
        angles = "exact angles" if exact else f"angles as released in {c.rotary_compute}"
        lines.append(f"{turned}, base {c.rope_theta:g}, {angles}")
    if c.top_query:
        lines.append("a top block whose queries come from a position table")
    blanks = c.context == "until_sop" or c.position == "learned_2d"
    head = "tied to" if c.tie_word_embeddings else "apart from"
    lines.append(
        f"{'context bidirectional, blanks causal' if blanks else 'causal'}; "
        f"output head {head} the word embedding"
    )
    return lines
