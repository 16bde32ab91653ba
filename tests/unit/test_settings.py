"""Run settings: every wrong key and value is named, overrides do exactly what they say."""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from openglm.errors import ConfigError
from openglm.settings import override, parse, read_toml
from openglm.train.config import RunConfig, load_run_config


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float
    kind: Literal["cosine", "linear"] = "cosine"


@dataclass(frozen=True, kw_only=True)
class Outer:
    steps: int
    inner: Inner
    names: list[str] = field(default_factory=list)
    parts: list[Inner] = field(default_factory=list)
    limit: int | None = None
    shuffle: bool = True


VALUES: dict[str, Any] = {"steps": 3, "inner": {"rate": 0.5}}


def test_tables_become_nested_values() -> None:
    """A whole section of a configuration would be lost, or an int given as a rate refused."""
    parsed = parse(
        Outer,
        {
            "steps": 3,
            "inner": {"rate": 1, "kind": "linear"},
            "names": ["a"],
            "parts": [{"rate": 2.5}],
            "limit": 7,
        },
    )
    inner = Inner(rate=1.0, kind="linear")
    assert parsed == Outer(steps=3, inner=inner, names=["a"], parts=[Inner(rate=2.5)], limit=7)
    assert type(parsed.inner.rate) is float


def test_an_unknown_key_is_an_error_with_a_suggestion() -> None:
    """A misspelt key would be ignored, and the run would train with the default."""
    with pytest.raises(ConfigError, match=r"^unknown key inner\.kindd") as caught:
        parse(Outer, VALUES | {"inner": {"rate": 0.5, "kindd": "linear"}})
    assert caught.value.hint.startswith("did you mean 'kind'")


def test_a_missing_key_is_named_in_full() -> None:
    """The user would not know in which table the key is missing."""
    with pytest.raises(ConfigError, match=r"the key inner\.rate is missing"):
        parse(Outer, {"steps": 3, "inner": {}})
    with pytest.raises(ConfigError, match=r"the key parts\[1\]\.rate is missing"):
        parse(Outer, VALUES | {"parts": [{"rate": 1.0}, {}]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": "3"}, r"steps='3' must be of type int"),
        ({"steps": 3.0}, r"steps=3\.0 must be of type int"),
        ({"steps": True}, r"steps=True must be of type int"),
        ({"shuffle": 1}, r"shuffle=1 must be of type bool"),
        ({"inner": {"rate": "fast"}}, r"inner\.rate='fast' must be of type float"),
        ({"inner": {"rate": False}}, r"inner\.rate=False must be of type float"),
        ({"inner": {"rate": 1.0, "kind": "step"}}, r"inner\.kind='step' is not one of cosine, lin"),
        ({"inner": 4}, r"inner must be a table, not 4"),
        ({"names": "a"}, r"names must be a list, not 'a'"),
        ({"names": ["a", 2]}, r"names\[1\]=2 must be of type str"),
        ({"limit": "7"}, r"limit='7' must be of type int"),
    ],
)
def test_a_wrong_type_is_an_error_that_names_key_and_value(
    change: dict[str, Any], message: str
) -> None:
    """A wrong type would crash hours later, or a bool would count as the number 1."""
    with pytest.raises(ConfigError, match=message):
        parse(Outer, VALUES | change)


def test_settings_that_are_not_a_table_are_refused() -> None:
    """A JSON file with a list would raise a TypeError instead of an explanation."""
    with pytest.raises(ConfigError, match=r"the configuration must be a table, not \[1\]"):
        parse(Outer, [1])


def test_dotted_overrides_replace_values_and_add_tables() -> None:
    """`--train.lr 2e-4` would change nothing, or the wrong key, or the caller's own values."""
    values = {"steps": 3, "inner": {"rate": 0.5, "kind": "cosine"}}
    changed = override(
        values, {"inner.rate": "2e-4", "steps": "10", "inner.kind": "linear", "new.deep.on": "true"}
    )
    assert changed == {
        "steps": 10,
        "inner": {"rate": 2e-4, "kind": "linear"},
        "new": {"deep": {"on": True}},
    }
    assert values == {"steps": 3, "inner": {"rate": 0.5, "kind": "cosine"}}


def test_an_override_is_toml_if_it_can_be_else_text() -> None:
    """A list or quoted number on the command line would arrive as something else."""
    texts = {"a": "[1, 2]", "b": '"7"', "c": "runs/7b", "d": "", "e": "[1,"}
    assert override({}, texts) == {"a": [1, 2], "b": "7", "c": "runs/7b", "d": "", "e": "[1,"}


def test_an_override_below_a_value_is_refused() -> None:
    """`--steps.x 1` would replace the number of steps by a table."""
    with pytest.raises(ConfigError, match=r"steps\.x: 'steps' is a value, not a table"):
        override({"steps": 3}, {"steps.x": "1"})
    with pytest.raises(ConfigError, match=r"parts\.0\.rate: 'parts' is a value, not a table"):
        override({"parts": [{"rate": 1.0}]}, {"parts.0.rate": "2"})


def test_a_date_in_a_configuration_is_an_error_about_its_key() -> None:
    """TOML reads 2026-11-20 as a date; overriding another key would end in a bare TypeError."""
    values = VALUES | {"names": [datetime.date(2026, 11, 20)]}
    with pytest.raises(ConfigError, match=r"names\[0\].*must be of type str"):
        parse(Outer, override(values, {"steps": "4"}))


def test_toml_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    """`glm pretrain` would end in a traceback."""
    with pytest.raises(ConfigError, match=r"there is no configuration file .*none\.toml"):
        read_toml(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = \n")
    with pytest.raises(ConfigError, match=r"bad\.toml is not valid TOML: .*line 1"):
        read_toml(tmp_path / "bad.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"\n')
    with pytest.raises(ConfigError, match=r"latin\.toml is not valid TOML"):
        read_toml(tmp_path / "latin.toml")


RUN = """
[model]
vocab_size = 400
hidden_size = 32
num_layers = 1
num_attention_heads = 2
intermediate_size = 64
max_position_embeddings = 64
[tokenizer]
kind = "mini"
path = "tokenizer.model"
[train]
steps = 2
sequence_length = 64
[[data.sources]]
name = "tales"
path = "tales.txt"
"""


def run_config(folder: Path, **assignments: str) -> RunConfig:
    (folder / "run.toml").write_text(RUN)
    return load_run_config(
        folder / "run.toml", {k.replace("__", "."): v for k, v in assignments.items()}
    )


def test_a_run_configuration_is_read_and_overridden(tmp_path: Path) -> None:
    """A run started from another folder would not find its data, or ignore `--train.steps`."""
    config = run_config(
        tmp_path,
        train__steps="9",
        objective__token="1.0",
        objective__sentence="0.0",
        objective__document="0.0",
    )
    assert config.train.steps == 9
    assert (config.objective.token, config.objective.document) == (1.0, 0.0)
    assert config.tokenizer.path == str(tmp_path / "tokenizer.model")
    assert Path(config.data.folder) == tmp_path
    assert config.data.sources[0].templates == ["{text}"]


def test_contradictions_in_a_run_are_refused(tmp_path: Path) -> None:
    """The run would fail in its first step with an index error in the position table."""
    with pytest.raises(ConfigError, match=r"sequence_length=128 is larger than .*embeddings=64"):
        run_config(tmp_path, train__sequence_length="128")
    with pytest.raises(ConfigError, match=r"data\.holdout=1\.0 must be in \[0, 1\)"):
        run_config(tmp_path, data__holdout="1.0")
    with pytest.raises(ConfigError, match=r"unknown key train\.step .*did you mean 'steps'"):
        run_config(tmp_path, train__step="1")
