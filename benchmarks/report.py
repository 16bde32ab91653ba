"""Tells the committed results: RESULTS.md beside them, and a plot; `python -m benchmarks report`.

What is told of each, and what it is held to, is in `benchmarks.goals`.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.goals import BARS, LLAMA, ROWS, Row
from benchmarks.record import RESULTS

HERE = Path(__file__).parent
PAGE, PLOT = HERE / "RESULTS.md", HERE.parent / "docs" / "images" / "engine_cpu.png"
HEAD = "| | measured | ratio | wanted | met |\n|---|---|---|---|---|\n"
OURS, THEIRS = "#2a6fb0", "#b9bec4"


class Figure(NamedTuple):
    """A row's figure in one result.

    Args:
        label: what is measured.
        value: what counts.
        own: ours, if `value` is a ratio.
        peer: the peer's.
    """

    label: str
    value: float
    own: float | None = None
    peer: float | None = None


def write() -> None:
    """Writes the page, and the plot if there is something to draw."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.iterdir())]
    parts = [_section(record) for record in records]
    for record in records:
        if record["benchmark"] == BARS[0].benchmark:
            _draw(record)
    intro = (
        "# Results\n\nWritten from `results/` by `python -m benchmarks report`. Machines are "
        "shared and noisy: compare ratios, whose two sides were measured in turn.\n"
    )
    picture = f"\n![{LLAMA} and ours](../docs/images/{PLOT.name})\n" if PLOT.exists() else ""
    PAGE.write_text(intro + picture + "".join(parts), encoding="utf-8")


def figures(row: Row, record: dict[str, Any]) -> Iterator[Figure]:
    """What the record has for a row: a figure for each key that `*` stands for."""
    for keys, value in _find(record, row.path):
        label = row.label.format(*keys)
        if not row.over:
            yield Figure(label, value - sum(v for _, v in _find(record, row.minus)))
        for _, over in _find(record, row.over):
            yield Figure(label, value / over, value, over)


def _find(record: Any, path: str) -> Iterator[tuple[list[str], Any]]:
    """What a path leads to, with the keys that `*` stood for; nothing where it leads nowhere."""
    if not path:
        return
    key, _, rest = path.partition("/")
    inside = record if isinstance(record, dict) else {}
    for name in inside if key == "*" else [key] if key in inside else []:
        stars = [name] if key == "*" else []
        if not rest:
            yield stars, inside[name]
        for more, value in _find(inside[name], rest):
            yield stars + more, value


def _section(record: dict[str, Any]) -> str:
    """The claim of a result, where it was measured, and its rows; empty without any."""
    name = record["benchmark"]
    lines = [
        _line(row, figure)
        for row in ROWS
        if row.benchmark == name
        for figure in figures(row, record)
    ]
    if not lines:
        return ""
    where = f"{record['hardware']}, {record['date']}, commit {record['commit']}"
    about = [record[key] for key in ("model", "kernels", "peer") if record.get(key)]
    text = f"\n## {name}\n\n{_claim(name)}\n\n{'; '.join([where, *about])}.\n\n"
    return text + HEAD + "".join(lines)


def _claim(name: str) -> str:
    """The first paragraph of a script's docstring."""
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").split("\n\n")[0].replace("\n", " ")


def _line(row: Row, figure: Figure) -> str:
    is_ratio = figure.own is not None
    unit = "" if is_ratio else row.unit
    value = _number(figure.value, unit)
    measured, ratio = ("", value) if is_ratio else (value, "")
    if figure.own is not None and figure.peer is not None and row.against:
        own, peer = _number(figure.own, ""), _number(figure.peer, row.unit)
        measured = f"{own}, {row.against} {peer}"
    scale = 1e9 if unit == "GB" else 1
    bounds = {
        sign: bound * scale
        for sign, bound in (("≥", row.at_least), ("≤", row.at_most))
        if bound is not None
    }
    is_met = all(
        figure.value >= bound if sign == "≥" else figure.value <= bound
        for sign, bound in bounds.items()
    )
    wanted = ", ".join(f"{sign} {_number(bound, unit)}" for sign, bound in bounds.items())
    met = ("yes" if is_met else "**no**") if bounds else ""
    return f"| {figure.label} | {measured} | {ratio} | {wanted} | {met} |\n"


def _number(value: float, unit: str) -> str:
    """Three digits, and the unit."""
    scale = {"GB": 1e-9, "%": 100.0}.get(unit, 1.0)
    scaled = value * scale
    digits = f"{scaled:,.0f}" if abs(scaled) >= 100 else f"{scaled:.3g}"
    return f"{digits} {unit}".strip()


def _draw(record: dict[str, Any]) -> None:
    """Bars of ours and the peer's, for the rows that have both."""
    from matplotlib.figure import Figure as Canvas

    found = [f for row in BARS for f in figures(row, record) if f.own is not None]
    if not found:
        return
    canvas = Canvas(figsize=(8, 0.55 * len(found) + 1.2), layout="constrained")
    axes = canvas.subplots()
    height = 0.38
    for side, color, offset in (("own", OURS, -height / 2), ("peer", THEIRS, height / 2)):
        values = [getattr(figure, side) for figure in found]
        label = "openglm" if side == "own" else record["peer"]
        places = [index + offset for index in range(len(found))]
        axes.barh(places, values, height, color=color, label=label)
    for index, figure in enumerate(found):
        longer = max(figure.own or 0, figure.peer or 0)
        axes.annotate(
            f"{figure.value:.2f} x",
            (longer, index),
            (5, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(found)), [figure.label for figure in found])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("tokens/s")
    axes.set_title(f"{record['model']}; {record['hardware']}", loc="left", fontsize=10)
    axes.legend(frameon=False, loc="lower right")
    canvas.savefig(PLOT, dpi=120, metadata={"Software": None})
