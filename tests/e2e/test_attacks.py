"""The attacks of `glm attack`: our server withstands all of them, and broken ones do not."""

from __future__ import annotations

import asyncio
import json
import logging
import runpy
import threading
from contextlib import contextmanager, suppress

import pytest
import torch
import uvicorn

import helpers_broken as broken
import openglm
from helpers_serve import scripted, serving
from openglm.attacks import ATTACKS, Target, choose, launch, load
from openglm.attacks.target import Counts
from openglm.cli.main import _run
from openglm.engine.constraint import GrammarCompiler
from openglm.engine.engine import Engine
from openglm.errors import CheckpointError, RequestError, UsageError
from openglm.serve import hosted
from openglm.serve.body import BodyLimits
from openglm.serve.guard import GuardSettings
from openglm.serve.json_lines import JsonLines
from openglm.serve.record import requests
from openglm.serve.service import Call

pytest.importorskip("xgrammar", reason="the attacks with schemas need it")
SMALL = {"memory_bytes": 1 << 26}
"""Of an engine: there are many of them in a row here."""
ROWS = {attack.id: attack for attack in ATTACKS}
FILES = ("A9-files", "F1", "F2", "F3", "F8")
"""Rows about files; the broken server of these has nothing but files."""

OF_MODELS = {
    "chatglm3": ("P1", "P2", "R6", "R13"),
    "mini": ("R1", "R2", "R3", "R5", "R7", "R12", "R13", "P2"),
}
"""Rows to which models of other kinds may answer otherwise; all are tried on a GLM-4."""
TRIED = [("glm-4", row) for row in ROWS]
TRIED += [(model, row) for model, rows in OF_MODELS.items() for row in rows]


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A test machine may be busy with something else: how fast a server answers is not tested."""
    for module in ("attack", "load", "sizes"):
        monkeypatch.setattr(f"openglm.attacks.{module}.WAIT_SECONDS", 30.0)
    monkeypatch.setattr("openglm.attacks.attack.REFUSAL_SECONDS", 60.0)
    monkeypatch.setattr("openglm.attacks.attack.ALIVE_SECONDS", 60.0)
    monkeypatch.setattr("openglm.attacks.load.FREE_SECONDS", 60.0)


def script(conversation: str) -> str:
    """Writes what it is told to write, as far as it can be told by a stranger."""
    question = conversation.rsplit("<|user|>", 1)[-1]
    _, told, text = question.partition("Write this and nothing else:\n")
    return text.removesuffix("<|assistant|>") if told else "\n" + "word " * 400


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    kinds = {"glm-4": "glm4", "chatglm3": "chatglm3"}
    made = {
        name: scripted(tmp_path_factory.mktemp(name), script, name, kind)
        for name, kind in kinds.items()
    }
    return {**made, "mini": openglm.load()}


def succeeds(row, found, monkeypatch):
    """Whether an attack does; one fault is enough."""
    monkeypatch.setattr("openglm.attacks.attack.MOST_FAULTS", 1)
    return launch(ROWS[row], found).state == "failed"


@contextmanager
def target(models, model, **settings):
    with serving({model: models[model]}, engine=SMALL, **settings) as (address, key):
        found = Target(address, key, model=model)
        try:
            yield found
        finally:
            found.close()


@pytest.fixture(scope="module")
def ours(request, models, tmp_path_factory):
    """Our server, asked for one of its models, and what it logs."""
    log = tmp_path_factory.mktemp("log") / "serve.log"
    handler = logging.FileHandler(log)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in ("openglm", "uvicorn", "uvicorn.access")]
    for logger in loggers:
        logger.addHandler(handler)
    requests.setLevel(logging.INFO)
    others = []
    with target(
        models, request.param, with_keys=lambda keys: others.append(keys.create("other"))
    ) as found:
        found.log, found.other_key = log, others[0]
        yield found
    requests.setLevel(logging.NOTSET)
    for logger in loggers:
        logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize(
    ("ours", "row"), TRIED, indirect=["ours"], ids=["-".join(pair) for pair in TRIED]
)
def test_our_server_withstands(row, ours):
    """Somebody on the network can do to a server what this row says."""
    verdict = launch(ROWS[row], ours)
    assert verdict.state != "failed", "\n".join(verdict.notes)
    if verdict.state == "not applicable":
        pytest.skip(verdict.notes[0])


AROUND = {
    "A1": broken.guards_a_prefix,
    "A2": broken.slow_for_known_ids,
    "A3": broken.trusts_tokens,
    "A4": broken.echoes_keys,
    "A6": broken.knows_any_name,
    "A7": broken.open_to_pages,
    "A8": broken.takes_any_type,
    "A9": broken.numbers_answers,
    "A10": broken.has_a_default_key,
    "F9": broken.joins_names_to_a_folder,
    "R1": broken.ignores_fields,
    "R2": broken.ignores_fields,
    "R3": broken.ignores_fields,
    "R4-odd": broken.blames_itself,
    "R4-slow": broken.one_at_a_time,
    "R7": broken.ignores_fields,
    "R13": broken.blames_itself,
    "S1": broken.fetches_pictures,
}
"""Row -> a server on which it succeeds."""


@pytest.mark.parametrize("row", AROUND)
def test_a_broken_server_fails(row, models, monkeypatch):
    """The attack sees nothing: it would pass on any server."""
    with target(models, "glm-4", around=AROUND[row]) as found:
        found.client.timeout = 10.0  # some never answer
        assert succeeds(row, found, monkeypatch)


def test_a_traceback_is_seen(models):
    """Paths and lines of source in an answer pass for a clean refusal."""
    with target(models, "glm-4", around=broken.shows_its_inside) as found:
        notes = launch(ROWS["R2"], found).notes
        assert any("traceback" in note for note in notes)


def test_without_limits_of_size(models, monkeypatch):
    """A server reads gigabytes, and the attack does not see it."""
    guard = GuardSettings(body=BodyLimits(bytes=10**12, seconds=3.0), header_bytes=10**9)
    with target(models, "glm-4", guard=guard) as found:
        assert succeeds("R4-large", found, monkeypatch)


def test_tokens_in_the_event_loop(models, monkeypatch):
    """A server stands still while it reads one long text, and the attack does not see it."""

    async def here(function, *arguments):
        return function(*arguments)

    monkeypatch.setattr(hosted.asyncio, "to_thread", here)
    monkeypatch.setattr(hosted, "LONGEST_TOKEN_BYTES", 1 << 40)
    monkeypatch.setattr("openglm.attacks.sizes.WAIT_SECONDS", 0.2)
    with target(models, "mini") as found:
        assert succeeds("R5", found, monkeypatch)


def test_schemas_that_break_the_compiler(models, monkeypatch):
    """What the grammar's compiler raises is the server's fault, and the attack does not see it."""

    def compile_(self, kind, value):
        raise MemoryError

    monkeypatch.setattr(GrammarCompiler, "compile", compile_)
    with target(models, "glm-4") as found:
        assert succeeds("R6", found, monkeypatch)


def test_places_that_are_never_free(models, monkeypatch):
    """Streams that nobody reads lock their user out for good, and the attack does not see it."""
    monkeypatch.setattr(load, "FREE_SECONDS", 1.0)
    with target(models, "glm-4", concurrency=16) as found:
        monkeypatch.setattr(Call, "leave", lambda self: None)
        assert succeeds("R8", found, monkeypatch)


def test_a_server_that_grows(models, monkeypatch):
    """Memory leaks with every call, and the attack does not see it."""
    monkeypatch.setattr(load, "GROWTH_BYTES", 1 << 25)
    with target(models, "glm-4", around=broken.keeps_everything) as found:
        assert succeeds("R13", found, monkeypatch)


def test_a_cache_for_everybody(models, monkeypatch):
    """One user learns what another has asked, and the attack does not see it."""
    monkeypatch.setattr("openglm.engine.scheduler.root_key", lambda tenant: b"of all")
    others = []
    with target(
        models, "glm-4", with_keys=lambda keys: others.append(keys.create("other"))
    ) as found:
        found.other_key = others[0]
        assert succeeds("R12", found, monkeypatch)


def test_requests_that_nobody_ends(models, monkeypatch):
    """What a client left is written to its end, and the attack does not see it."""
    monkeypatch.setattr(load, "FREE_SECONDS", 1.0)
    monkeypatch.setattr(Engine, "cancel", lambda self, request_id: None)
    with target(models, "glm-4") as found:
        assert succeeds("R9", found, monkeypatch)


def test_a_server_that_evaluates(models, monkeypatch):
    """Models run programs on the server, as in ChatGLM3's demo, and the attack does not see it."""

    def evaluated(source):
        call = source.strip().removeprefix("```python").removesuffix("```")
        return json.dumps(eval(call, {"tool_call": dict}))

    monkeypatch.setattr("openglm.chat.streaming._as_json", evaluated)
    monkeypatch.setattr("openglm.attacks.prompts.SLEEP", "tool_call(x=1)")
    with target(models, "chatglm3") as found:
        assert succeeds("P1", found, monkeypatch)


def test_texts_that_are_commands(models, monkeypatch):
    """Users speak as the system, and the attack does not see it."""
    tokenizer = models["glm-4"].tokenizer
    commands = {"<|user|>", "<|assistant|>", "<|system|>"}
    monkeypatch.setattr(
        type(tokenizer), "encode", lambda self, text: self.encode_with(text, commands)
    )
    with target(models, "glm-4") as found:
        assert succeeds("P2", found, monkeypatch)


def test_a_log_that_believes_clients(models, tmp_path, monkeypatch):
    """Clients write lines into the log, and the attack does not see it."""
    log = tmp_path / "serve.log"
    handler = logging.FileHandler(log)
    logging.getLogger("openglm").addHandler(handler)
    try:
        with target(models, "glm-4", around=broken.logs_what_is_sent) as found:
            found.log = log
            assert succeeds("P8", found, monkeypatch)
    finally:
        logging.getLogger("openglm").removeHandler(handler)
        handler.close()


def runs_pickles(folder):
    """As tools load that were written before torch had `weights_only`."""
    for file in folder.glob("*.pt"):
        torch.load(file, weights_only=False)
    raise CheckpointError("the marks were left all the same")


def runs_code(folder):
    """As `trust_remote_code` does."""
    if json.loads((folder / "config.json").read_text()).get("auto_map"):
        runpy.run_path(str(folder / "evil.py"))


LOADERS = {
    "M1": runs_pickles,
    "M2": lambda folder: None,
    "M3": lambda folder: None,
    "M4": runs_code,
    "M5": lambda folder: 1 // 0,
}
"""Row -> a loader on which it succeeds."""


@pytest.mark.parametrize("row", LOADERS)
def test_a_broken_loader_fails(row, models, monkeypatch):
    """A folder from the internet does what it wants, and the attack does not see it."""
    monkeypatch.setattr("openglm.attacks.artefacts.load_checkpoint", LOADERS[row])
    with target(models, "glm-4") as found:
        assert succeeds(row, found, monkeypatch)


def test_a_folder_that_leads_out(models, monkeypatch):
    """An imported folder brings files of this machine along, and the attack does not see it."""
    monkeypatch.setattr("openglm.attacks.folders.LocalFolder.check", lambda self, file: None)
    with target(models, "glm-4") as found:
        assert succeeds("F4", found, monkeypatch)


def test_a_run_that_is_a_program(models, monkeypatch):
    """Going on with a run executes what is in its folder, and the attack does not see it."""

    def restores_pickles(folder, model, optimizer):
        for file in folder.iterdir():
            with suppress(Exception):
                torch.load(file, weights_only=False)
        raise CheckpointError("the marks were left all the same")

    monkeypatch.setattr("openglm.attacks.folders.restore", restores_pickles)
    with target(models, "glm-4") as found:
        assert succeeds("M7", found, monkeypatch)


@contextmanager
def files(is_broken):
    app = broken.Files("me.x", "other.x", is_broken)
    server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
        port = server.servers[0].sockets[0].getsockname()[1]
        found = Target(f"http://127.0.0.1:{port}", "me.x", other_key="other.x")
        yield found
        found.close()
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize("row", FILES)
def test_files(row):
    """The attacks on files see nothing, or see faults where there are none."""
    for is_broken, state in ((False, "withstood"), (True, "failed")):
        with files(is_broken) as found:
            assert launch(ROWS[row], found).state == state


def test_every_row_is_shown_to_fail():
    """A row was added of which nobody knows whether it sees anything."""
    elsewhere = {"R4-large", "R5", "R6", "R8", "R9", "R12", "P1", "P2", "P8", "F4", "M7"}
    elsewhere |= {*FILES, *LOADERS}
    assert {attack.id for attack in ATTACKS} == {*AROUND, *elsewhere}


def test_only_what_is_ours(models):
    """A wrong address attacks somebody else, or a wrong key passes for a strong server."""
    for address in (
        "http://192.0.2.1:8000",
        "https://example.org",
        "http://127.0.0.1.evil.example",
    ):
        with pytest.raises(UsageError, match="not this machine"):
            Target(address, "a.b")
    with pytest.raises(UsageError, match="no address"):
        Target("127.0.0.1:8000", "a.b")
    with serving(models, engine=SMALL) as (address, key):
        with pytest.raises(RequestError, match="401"):
            Target(address, key + "x")
        with pytest.raises(RequestError, match="other"):
            Target(address, key, other_key=key + "x")


def test_rows_by_name():
    """A row that is asked for does not run, or one that does not exist is passed over."""
    assert [attack.id for attack in choose(["R4", "A1"])] == ["A1", "R4-large", "R4-odd", "R4-slow"]
    assert choose([]) == ATTACKS
    with pytest.raises(UsageError, match="no images"):
        choose(["F7"])
    with pytest.raises(UsageError, match="nothing is fetched"):
        choose(["S4"])
    with pytest.raises(UsageError, match="known"):
        choose(["Z1"])


def test_the_counts_of_the_table(models, monkeypatch, capsys):
    """`--full` tries as little as without, or cannot open so many connections."""
    monkeypatch.setattr("openglm.attacks.FULL", Counts(streams=200, disconnects=9, mutations=9))
    with serving({"glm-4": models["glm-4"]}, engine=SMALL) as (address, key):
        asked = ["attack", address, "--key", key, "--only", "R8,R9", "--full", "--json"]
        assert _run(asked, False) == 0
        found = json.loads(capsys.readouterr().out)["attacks"]
        assert [row["state"] for row in found] == ["withstood", "withstood"]
        monkeypatch.setattr(load, "SPARE_FILES", 1 << 62)
        assert _run(asked, False) == 0
        found = json.loads(capsys.readouterr().out)["attacks"]
        assert [row["state"] for row in found] == ["not applicable", "withstood"]


def test_the_command(models, monkeypatch, capsys):
    """Scripts that watch a server get another exit code or document than was promised."""
    monkeypatch.delenv("OPENGLM_OTHER_KEY", raising=False)
    with serving(models, engine=SMALL) as (address, key):
        only = "A10,A9-files"  # the second needs another key
        assert _run(["attack", address, "--key", key, "--only", only, "--json"], False) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["state"] for row in found["attacks"]] == ["not applicable", "withstood"]
        assert _run(["attack", address, "--key", key, "--only", "A10"], False) == 0
        assert "0 of 1 failed" in capsys.readouterr().out
    with serving(models, engine=SMALL, around=broken.has_a_default_key) as (address, key):
        assert _run(["attack", address, "--key", key, "--only", "A10"], False) == 1


def test_starting_without_keys(tmp_path):
    """A server answers whoever comes: there is a way to start it without keys."""
    from openglm.serve.app import create_app
    from openglm.serve.database import Database
    from openglm.serve.keys import KeyStore

    database = Database(f"sqlite:///{tmp_path}/serve.db")
    app = create_app({"mini": openglm.load()}, database, KeyStore(database, tmp_path / "k"))
    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "GET", "path": "/v1/models", "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }  # fmt: skip
    asyncio.run(app(scope, None, send))
    database.close()
    assert sent[0]["status"] == 401
