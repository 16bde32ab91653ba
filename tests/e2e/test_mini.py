"""The shipped model: small, lossless, and able to do what the demo shows."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest

import openglm
from openglm.cli.demo import FILL_SCENES, PROMPTS
from openglm.cli.main import _run
from openglm.settings import parse, read_toml
from openglm.train.config import RunConfig

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "src" / "openglm" / "mini"
CARD = ROOT / "docs" / "models" / "mini.md"
EVALUATION = ROOT / "recipes" / "mini" / "evaluation.json"


@cache
def mini() -> openglm.LanguageModel:
    return openglm.load("mini", dtype="float32", device="cpu")


def test_it_fits_the_package():
    """The wheel grows beyond the 40 MB that were promised."""
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 40_000_000


def test_it_is_the_recipe():
    """The shipped weights come from another network than the recipe makes."""
    recipe = parse(RunConfig, read_toml(ROOT / "recipes" / "mini" / "pretrain.toml"))
    assert mini().config == recipe.model
    assert f"{mini().config.num_parameters:,}" in CARD.read_text(encoding="utf-8")


def test_the_card_has_the_measured_figures():
    """The model card claims what was not measured."""
    card = CARD.read_text(encoding="utf-8")
    figures = json.loads(EVALUATION.read_text(encoding="utf-8"))
    for language in ("English", "Chinese"):
        assert f"| {figures['languages'][language]['bits_per_byte']} |" in card


@pytest.mark.parametrize(
    ("given", "next_line"),
    [
        ("春眠不觉晓，处处闻啼鸟。\n", "夜来风雨声，花落知多少。"),
        ("千山鸟飞绝，万径人踪灭。\n", "孤舟蓑笠翁，独钓寒江雪。"),
    ],
)
def test_famous_poems(given, next_line):
    """The weights are damaged, or positions and masks are not those it was trained with."""
    made = mini().generate(given, temperature=0.0, max_tokens=40).text
    assert made.split("\n")[0] == next_line


def test_blanks_in_both_languages():
    """The space before an English blank is read as a word of its own, and numbers come out."""
    texts = (
        "He opened the [MASK] and went out.",
        "床前明月光，疑是[MASK]。举头望明月，低头[MASK]。",
    )
    filled = [mini().fill(text, max_tokens=8).text for text in texts]
    assert filled[0] == "He opened the door and went out."
    assert filled[1] == "床前明月光，疑是地上霜。举头望明月，低头思故乡。"


def test_a_better_text_is_more_likely():
    """Scores are noise."""
    context = "床前明月光，疑是[MASK]。"
    scores = {choice.choice: choice.score for choice in mini().score(context, ["地上霜", "桌椅子"])}
    assert scores["地上霜"] > scores["桌椅子"] + 1


def test_the_demo_fills_every_blank(capsys):
    """`make demo`, the first thing that anyone sees, shows an empty blank or fails."""
    assert _run(["demo", "--json"], False) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == sum(len(scene.texts) for scene in FILL_SCENES) + len(PROMPTS)
    for result in results:
        assert all(blank.strip() for blank in result["blanks"]), result["prompt"]
