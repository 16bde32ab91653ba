"""Fields that several tabs have: which model, how long, how bold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from openglm.serve.web.form import Say

MAX_TOKENS = 4096
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Of events: nothing flickers, and they are no API."""
SMALL: dict[str, Any] = {"scale": 0, "min_width": 130}
"""Of buttons beside a field, or in a row of their own."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What these fields say.

    Args:
        model: its name.
        sampling: settings as a call takes them.
    """

    model: str
    sampling: dict[str, Any]


def html_field(value: str = "", **settings: Any) -> gr.Markdown:
    """HTML as it is; whoever makes it escapes what is not its own, and ends no line in it.

    Gradio's component of that name evaluates what it shows as a script, which our policy forbids.
    """
    return gr.Markdown(value, sanitize_html=False, latex_delimiters=[], **settings)


def wish_fields(
    say: Say, names: Sequence[str], max_tokens: int, temperature: float | None = None
) -> list[Any]:
    """Model, length, whether the model's own settings hold; temperature and top-p if they do not.

    Args:
        say: chooses the language.
        names: of models, the first to begin with; see `Renewal.choose`, which renews them.
        max_tokens: to begin with.
        temperature: to begin with; None means the model's own settings.
    """
    is_own = temperature is None
    first = next(iter(names), None)
    model = gr.Dropdown(
        list(names), value=first, label=say("Model", "模型"), visible=len(names) > 1
    )
    with gr.Group():
        length = gr.Slider(
            1, MAX_TOKENS, value=max_tokens, step=1, label=say("Tokens at most", "最多词元数")
        )
        own = gr.Checkbox(is_own, label=say("The model's own settings", "使用模型默认设置"))
        warmth = gr.Slider(
            0,
            2,
            value=temperature or 0,
            step=0.05,
            label=say("Temperature", "温度"),
            visible=not is_own,
        )
        top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", visible=not is_own)
    own.change(lambda is_own: [gr.update(visible=not is_own)] * 2, own, [warmth, top_p], **QUIET)
    return [model, length, own, warmth, top_p]


def wish(
    model: str | None, max_tokens: float, is_own: bool, temperature: float, top_p: float
) -> Wish:
    """What the values of `wish_fields` say."""
    chosen = {} if is_own else {"temperature": temperature, "top_p": top_p}
    return Wish(model or "", {"max_tokens": int(max_tokens)} | chosen)
