"""The log-in form: all that strangers see. Plain HTML without scripts."""

from __future__ import annotations

from collections.abc import Callable
from html import escape

from openglm.serve.web.dressing import ICON

Say = Callable[[str, str], str]
"""English and Chinese -> the one that the reader wants."""
LANGUAGES = ("en", "zh")
FORM = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>openglm</title>
{icon}
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; display: grid; place-items: center; min-height: 90vh;
       margin: 0; background: Canvas; color: CanvasText }}
form {{ width: min(24rem, 90vw) }}
h1 {{ font-weight: 600; margin: 0 }}
input, button {{ box-sizing: border-box; width: 100%; padding: .6rem .8rem; margin-top: .6rem;
                font: inherit; border: 1px solid GrayText; border-radius: .5rem }}
button {{ background: #2563eb; color: white; border: 0; cursor: pointer }}
p {{ color: color-mix(in srgb, CanvasText 65%, Canvas) }}
[role=alert] {{ color: #dc2626 }}
</style>
</head>
<body>
<form method="post" action="{action}">
<h1>openglm</h1>
<p>{intro}</p>
{alert}
<label for="key">{label}</label>
<input id="key" name="key" type="password" autocomplete="current-password" required autofocus>
<button>{button}</button>
</form>
</body>
</html>
"""


def chooser(language: str) -> Say:
    """The function that chooses texts of a language."""
    return lambda english, chinese: chinese if language == "zh" else english


def preferred(accepted: str) -> str:
    """The first of our languages in an `Accept-Language` header (RFC 9110, 12.5.4)."""
    ranked = []
    for place, entry in enumerate(accepted.lower().split(",")[:32]):
        name, _, quality = entry.strip().partition(";q=")
        try:
            ranked.append((-float(quality or 1), place, name[:2]))
        except ValueError:
            continue
    found = (name for _, _, name in sorted(ranked) if name in LANGUAGES)
    return next(found, LANGUAGES[0])


def log_in_form(action: str, language: str, is_refused: bool = False) -> str:
    """The form.

    Args:
        action: path that it is sent to.
        language: of its texts.
        is_refused: the key before was none.
    """
    say = chooser(language)
    refused = say("This key is not valid.", "密钥无效。")
    return FORM.format(
        language=language,
        icon=ICON,
        action=escape(action),
        intro=say(
            "Log in with a key of this server (ID.SECRET).", "请用本服务器的密钥（ID.SECRET）登录。"
        ),
        alert=f'<p role="alert">{refused}</p>' if is_refused else "",
        label=say("Key", "密钥"),
        button=say("Log in", "登录"),
    )
