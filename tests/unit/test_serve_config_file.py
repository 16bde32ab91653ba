"""serve.toml: every wrong key and value is named with its file, and paths lead where they say."""

from __future__ import annotations

import json
import os
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from openglm.cli.main import _run
from openglm.errors import ConfigError
from openglm.serve.config_file import ServeFile, ServerTable, read_serve_file
from openglm.serve.limits import LimitSettings
from openglm.serve.model_table import ModelTable

MINI = '[[models]]\nsource = "mini"\n'
WHOLE = """
[server]
host = "0.0.0.0"
port = 8080
public_names = ["glm.example.org"]
origins = ["https://chat.example.org"]
drain_seconds = 5
legacy = true
database = "sqlite:///state/serve.db"

[limits]
requests_per_minute = 7
concurrency = 2
tokens_per_day = 1000
queue = 3

[[models]]
source = "weights/tiny"
tokenizer = "words"
dtype = "int4-g64"
device = "cpu"
name = "glm-4"
aliases = ["gpt-4o", "智谱"]
load = false
memory_gib = 2
kv_dtype = "int8"
max_drafts = 4
max_batch_tokens = 256

[[models]]
source = "mini"
"""
BAD = [
    ("port = ", ["not valid TOML"]),
    ("[sever]", ["sever", "'server'"]),
    ("[server]\nprot = 1", ["server.prot", "'port'"]),
    ("server = 5", ["server must be a table", "5"]),
    ("[server]\nport = '8000'", ["server.port='8000'", "int"]),
    ("[server]\nport = true", ["server.port=True", "int"]),
    ("[server]\nport = 0", ["server.port=0", "1 to 65,535"]),
    ("[server]\nport = 65536", ["server.port=65536", "1 to 65,535"]),
    ("[server]\nhost = ' '", ["server.host=''", "127.0.0.1"]),
    ("[server]\nhost = 1", ["server.host=1", "str"]),
    ("[server]\ndrain_seconds = -1", ["server.drain_seconds=-1", "0 to 86,400"]),
    ("[server]\ndrain_seconds = nan", ["server.drain_seconds=nan"]),
    ("[server]\ndrain_seconds = inf", ["server.drain_seconds=inf"]),
    ("[server]\nlegacy = 1", ["server.legacy=1", "bool"]),
    ("[server]\npublic_names = 'a.b'", ["server.public_names", "list"]),
    ("[server]\npublic_names = [5]", ["server.public_names[0]=5", "str"]),
    ("[server]\npublic_names = ['*']", ["server.public_names", "'*'", "glm.example.org"]),
    ("[server]\norigins = ['a.b']", ["server.origins", "'a.b'", "https://"]),
    ("[server]\ndatabase = 'serve.db'", ["server.database", "sqlite:///"]),
    ("[limits]\nqueue = 0", ["limits.queue=0", "1 to"]),
    ("[limits]\nconcurrency = -3", ["limits.concurrency=-3"]),
    ("[limits]\ntokens_per_day = 0", ["limits.tokens_per_day=0"]),
    ("[limits]\nrequests_per_minute = 1.5", ["limits.requests_per_minute=1.5", "int"]),
    ("[limits]\nrpm = 5", ["limits.rpm", "requests_per_minute"]),
    ("[models]\nsource = 'mini'", ["models must be a list"]),
    ("[[models]]", ["models[0].source", "missing"]),
    ("[[models]]\nsource = ''", ["models[0].source", "empty"]),
    ("[[models]]\nsource = 'minni'", ["models[0].source", "'minni'", "did you mean 'mini'"]),
    ("[[models]]\nsource = 'chatglm2-6b'", ["models[0].source", "glm download"]),
    (MINI + "sorce = 'a'", ["models[0].sorce", "'source'"]),
    (MINI + "dtype = 'int3'", ["models[0].dtype", "'int3'", "int4"]),
    (MINI + "device = 'tpu'", ["models[0].device", "'tpu'", "cpu"]),
    (MINI + "tokenizer = 'none'", ["models[0].tokenizer='none'"]),
    (MINI + "kv_dtype = 'int9'", ["models[0].kv_dtype='int9'", "int8"]),
    (MINI + "memory_gib = 0", ["models[0].memory_gib=0", "0.001 to"]),
    (MINI + "memory_gib = '1'", ["models[0].memory_gib='1'", "float"]),
    (MINI + "max_drafts = 65", ["models[0].max_drafts=65", "0 to 64"]),
    (MINI + "max_batch_tokens = 0", ["models[0].max_batch_tokens=0"]),
    (MINI + "load = 'no'", ["models[0].load='no'", "bool"]),
    (MINI + "aliases = 'a'", ["models[0].aliases", "list"]),
    (MINI + "aliases = ['']", ["models[0]", "''"]),
    (MINI + 'name = "a\\tb"', ["models[0]", "printable"]),
    (MINI + "name = ''", ["models[0]", "''"]),
    (MINI + "name = ' a'", ["models[0]", "' a'"]),
    (MINI + MINI, ["models[1]", "'mini'", "models[0]"]),
    (MINI + MINI + "name = 'b'\naliases = ['mini']", ["models[1]", "'mini'", "models[0]"]),
    (MINI + "aliases = ['a', 'a']", ["models[0]", "'a'"]),
]


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is read from somewhere else, with the folders that it names beside it."""
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))
    for name in ("there/weights/tiny", "there/words", "there/state", "here"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "there" / "serve.toml"


def test_a_whole_file(file: Path) -> None:
    """A setting is read as another, or a path is taken from where the command was called."""
    file.write_text(WHOLE, encoding="utf-8")
    found = read_serve_file(Path("../there/serve.toml"))
    folder = file.parent
    assert found == ServeFile(
        server=ServerTable(
            host="0.0.0.0",
            port=8080,
            public_names=["glm.example.org"],
            origins=["https://chat.example.org"],
            drain_seconds=5.0,
            legacy=True,
            database=f"sqlite:///{folder}/state/serve.db",
        ),
        limits=LimitSettings(requests_per_minute=7, concurrency=2, tokens_per_day=1000, queue=3),
        models=[
            ModelTable(
                source=str(folder / "weights/tiny"),
                tokenizer=str(folder / "words"),
                dtype="int4-g64",
                device="cpu",
                name="glm-4",
                aliases=["gpt-4o", "智谱"],
                load=False,
                memory_gib=2.0,
                kv_dtype="int8",
                max_drafts=4,
                max_batch_tokens=256,
            ),
            ModelTable(source="mini"),
        ],
    )
    assert found.aliases == {"gpt-4o": "glm-4", "智谱": "glm-4"}
    assert [model.served_name for model in found.models] == ["glm-4", "mini"]


def test_an_empty_file(file: Path) -> None:
    """Defaults differ from those of the command."""
    file.write_text("")
    assert read_serve_file(file) == ServeFile()


@pytest.mark.parametrize(("text", "named"), BAD, ids=[text for text, _ in BAD])
def test_what_is_wrong_is_named(file: Path, text: str, named: list[str]) -> None:
    """A mistake is ignored, or its message does not say where it stands and what is allowed."""
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_serve_file(file)
    assert caught.value.message.startswith(str(file))
    for part in named:
        assert part in str(caught.value)


def test_a_file_that_is_missing(file: Path) -> None:
    """A misspelt path starts a server with defaults."""
    with pytest.raises(ConfigError, match="no configuration file"):
        read_serve_file(file)


def test_a_folder_where_the_command_is_called(file: Path) -> None:
    """A folder is served that is not the one beside the file."""
    os.mkdir("elsewhere")
    file.write_text('[[models]]\nsource = "elsewhere"\n')
    with pytest.raises(ConfigError, match="relative to the file"):
        read_serve_file(file)


def test_a_password_is_not_shown(file: Path) -> None:
    """The password of a database lands in a log, or is lost on the way."""
    file.write_text('[server]\ndatabase = "postgresql://glm:geheim@host/glm"\n')
    assert "geheim" in str(read_serve_file(file).server.database)
    file.write_text('[server]\ndatabase = "postgresql:glm:geheim@host"\n')
    with pytest.raises(ConfigError) as caught:
        read_serve_file(file)
    assert "geheim" not in str(caught.value)


@pytest.fixture
def started(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `glm serve` would start."""
    found: dict[str, Any] = {}

    def create_app(known: Any, database: Any, keys: Any, settings: Any) -> None:
        found.update(known=known, settings=settings)
        database.close()

    def bind(host: str, port: int) -> Any:
        found.update(host=host, port=port)
        return nullcontext()

    def server(app: None, drain_seconds: float) -> SimpleNamespace:
        found.update(drain_seconds=drain_seconds)
        return SimpleNamespace(run=lambda sockets: None)

    monkeypatch.setattr("openglm.serve.app.create_app", create_app)
    monkeypatch.setattr("openglm.serve.server.bind", bind)
    monkeypatch.setattr("openglm.serve.server.Server", server)
    return found


def test_the_command_line_goes_before_the_file(file: Path, started: dict[str, Any]) -> None:
    """A flag is ignored where a file is given, or a default of the command undoes the file."""
    file.write_text(WHOLE.replace('"mini"', '"mini"\nload = false'), encoding="utf-8")
    flags = ["--port", "9", "--memory", "0.5", "--public-name", "other.org", "--dtype", "int8"]
    assert _run(["serve", "--config", str(file), *flags], False) == 0
    assert (started["host"], started["port"], started["drain_seconds"]) == ("0.0.0.0", 9, 5.0)
    settings = started["settings"]
    assert settings.guard.names.hosts == {"localhost", "other.org"}
    assert settings.guard.names.origins == ("https://chat.example.org",)
    assert settings.limits.queue == 3
    assert settings.legacy
    assert settings.aliases == {"gpt-4o": "glm-4", "智谱": "glm-4"}
    for known in started["known"].values():
        assert known.engine["memory_bytes"] == 1 << 29
        assert known.read.args[1] == "int8"
    assert started["known"]["glm-4"].engine["max_drafts"] == 4


def test_where_the_keys_are(
    file: Path, started: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that is named for the keys shows those of another server."""
    file.write_text('[server]\ndatabase = "sqlite:///own.db"\n')
    for _ in range(2):  # the first start makes a key
        assert _run(["serve", "--config", str(file)], False) == 0
    (named,) = (line for line in capsys.readouterr().out.splitlines() if "glm keys" in line)
    assert _run([*named.partition("glm ")[2].split(), "--json"], False) == 0
    assert [key["name"] for key in json.loads(capsys.readouterr().out)] == ["first"]


def test_a_file_without_models(file: Path, started: dict[str, Any]) -> None:
    """Limits in a file cannot go with a model on the command line."""
    file.write_text("[limits]\nqueue = 3\n")
    words = ["serve", "mini", "--name", "small", "--alias", "a", "--config", str(file)]
    assert _run(words, False) == 0
    assert list(started["known"]) == ["small"]
    assert started["settings"].aliases == {"a": "small"}
    assert started["settings"].limits.queue == 3


@pytest.mark.parametrize("words", [["mini"], ["--name", "x"], ["--alias", "x"]])
def test_two_that_say_which_models(
    file: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """One of the two is ignored."""
    file.write_text(MINI)
    assert _run(["serve", *words, "--config", str(file)], False) == 2
    assert "[[models]]" in capsys.readouterr().err


def test_the_command_shows_what_is_wrong(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake in the file looks like a failure of the server."""
    file.write_text("[server]\nprot = 1\n")
    assert _run(["serve", "--config", str(file)], False) == 3
    shown = capsys.readouterr().err
    assert "serve.toml: unknown key server.prot" in shown
    assert "did you mean 'port'" in shown
