"""Keys of the server: who is let in, and what is kept of them."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("sqlalchemy", reason="the server is an extra: '.[serve]'")
pytest.importorskip("jwt", reason="the server is an extra: '.[serve]'")

import jwt
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, select, text

from openglm.cli.main import _run
from openglm.errors import ConfigError, UsageError
from openglm.serve.database import Database
from openglm.serve.identity import AuthenticationFailed
from openglm.serve.keys import KeyStore
from openglm.serve.tables import Base, Key
from openglm.serve.verified import SECONDS, SIZE, Verified

NOW = 1_800_000_000.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.seconds = NOW

    def __call__(self) -> float:
        return self.seconds


class Counted(Database):
    """A database that counts how often it is asked."""

    num_reads = 0

    def reading(self) -> Any:
        self.num_reads += 1
        return super().reading()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Counted]:
    opened = Counted(f"sqlite:///{tmp_path / 'serve.db'}")
    yield opened
    opened.close()


@pytest.fixture
def store(database: Counted, tmp_path: Path, clock: Clock) -> KeyStore:
    return KeyStore(database, tmp_path / "serve.key", now=clock, clock=clock)


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyStore]:
    """One store for all examples of a property, at the real time."""
    folder = tmp_path_factory.mktemp("keys")
    opened = Database(f"sqlite:///{folder / 'serve.db'}")
    yield KeyStore(opened, folder / "serve.key")
    opened.close()


def _token(key: str, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A token as zhipuai signs it; a claim of None is left out."""
    key_id, secret = key.split(".")
    payload = {
        "api_key": key_id,
        "exp": int(NOW * 1000) + 210_000,
        "timestamp": int(NOW * 1000),
        **claims,
    }
    payload = {name: value for name, value in payload.items() if value is not None}
    header = {"alg": "HS256", "sign_type": "SIGN", "typ": "JWT"} if header is None else header
    signed = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in (header, payload)
    )
    mac = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return signed + "." + base64.urlsafe_b64encode(mac).decode().rstrip("=")


def _reason(store: KeyStore, authorization: str | None) -> str:
    with pytest.raises(AuthenticationFailed) as failed:
        store.verify(authorization)
    return failed.value.reason


def test_every_form_that_clients_send(store: KeyStore) -> None:
    """Zhipuai sends the key with Bearer, ChatZhipuAI a token without: one of them is locked out."""
    key = store.create("ann", "admin", requests_per_minute=5, concurrency=2, tokens_per_day=9)
    for sent in (key, _token(key)):
        for form in (f"Bearer {sent}", f"bearer  {sent} ", sent):
            found = store.verify(form)
            assert (found.key_id, found.name, found.role) == (key.split(".")[0], "ann", "admin")
            limits = (found.requests_per_minute, found.concurrency, found.tokens_per_day)
            assert limits == (5, 2, 9)


def test_the_official_library_signs_the_same(store: KeyStore) -> None:
    """The tokens of these tests are not those that clients make with PyJWT."""
    key_id, secret = store.create("ann").split(".")
    payload = {"api_key": key_id, "exp": int(NOW * 1000) + 1, "timestamp": int(NOW * 1000)}
    token = jwt.encode(payload, secret, "HS256", headers={"alg": "HS256", "sign_type": "SIGN"})
    assert store.verify(token).key_id == key_id


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (None, "missing"),
        ("", "missing"),
        ("Bearer", "malformed"),
        ("Bearer ", "malformed"),
        ("Basic YTpi", "malformed"),
        ("sk-proj-something", "malformed"),
        (".", "malformed"),
        ("id.", "malformed"),
        (".secret", "malformed"),
        ("a.b.c", "malformed"),
        ("a.b.c.d", "malformed"),
        ("a\x00.b", "malformed"),
        ("ключ.секрет", "malformed"),
        ("id.'; drop table keys; --", "malformed"),
        ("a" * 1_000_000 + ".b", "malformed"),
        ("Bearer " + "." * 1_000_000, "malformed"),
        ("0123456789abcdef0123456789abcdef.secret", "refused"),
    ],
)
def test_what_is_no_key(store: KeyStore, sent: str | None, reason: str) -> None:
    """Something else than 401 is answered, or BigModel's clients get the wrong code."""
    assert _reason(store, sent) == reason


@given(st.one_of(st.text(), st.from_regex(r"(Bearer )?[!-~]*\.[!-~]*(\.[!-~]*)?", fullmatch=True)))
def test_no_header_breaks_the_check(shared_store: KeyStore, sent: str) -> None:
    """A strange header ends as status 500."""
    with pytest.raises(AuthenticationFailed):
        shared_store.verify(sent)


@given(
    st.dictionaries(st.text(max_size=9), st.integers() | st.text(max_size=9) | st.lists(st.none())),
    st.sampled_from(["api_key", "exp", "timestamp", "other"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.just([]),
)
def test_no_token_breaks_the_check(
    shared_store: KeyStore, header: dict[str, Any], claim: str, value: Any
) -> None:
    """Odd JSON in a token ends as status 500."""
    for head in (header, {"alg": "HS256", "sign_type": "SIGN"}):
        if claim == "other" and head is not header:
            continue
        with pytest.raises(AuthenticationFailed):
            shared_store.verify(_token("id.secret", head, **{claim: value}))


@given(st.lists(st.one_of(st.binary(max_size=90), st.text(max_size=30)), min_size=3, max_size=3))
def test_no_bytes_in_a_token_break_the_check(shared_store: KeyStore, parts: list[Any]) -> None:
    """A token of odd bytes, or of other JSON than objects, ends as status 500."""
    raw = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in parts]
    coded = [base64.urlsafe_b64encode(part).decode().rstrip("=") for part in raw]
    with pytest.raises(AuthenticationFailed):
        shared_store.verify(".".join(coded))


def test_deeply_nested_json(shared_store: KeyStore) -> None:
    """A parser that runs out of stack ends as status 500, or ends the server."""
    header = base64.urlsafe_b64encode(b'{"alg": "HS256", "sign_type": "SIGN"}').decode().rstrip("=")
    for depth in (300, 100_000):
        nested = base64.urlsafe_b64encode(b"[" * depth).decode()
        for token in (f"{header}.{nested}.x", f"{nested}.{nested}.x"):
            assert _reason(shared_store, token) == "malformed"


HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"exp": int(NOW * 1000) - HOUR_MS}, "expired"),  # PyJWT reads the year 58,000
        ({"exp": int(NOW * 1000)}, "expired"),
        ({"exp": int(NOW) + 3600}, "expired"),  # in seconds: 1970
        ({"exp": -1}, "expired"),
        ({"exp": int(NOW * 1000) + 2 * HOUR_MS}, "malformed"),
        ({"exp": 10**17}, "malformed"),
        ({"exp": None}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": str(int(NOW * 1000) + 1000)}, "malformed"),
        ({"exp": NOW * 1000 + 1000.5}, "malformed"),
        ({"exp": float("inf")}, "malformed"),
        ({"timestamp": None}, "malformed"),
        ({"timestamp": int(NOW * 1000) + 301_000}, "malformed"),
        ({"timestamp": int(NOW * 1000) - 301_000}, "expired"),
        ({"api_key": None}, "malformed"),
        ({"api_key": ["a"]}, "malformed"),
        ({"api_key": "a\x00"}, "malformed"),
        ({"api_key": "0123456789abcdef0123456789abcdef"}, "refused"),
        ({"filler": "x" * 1000}, "malformed"),
    ],
)
def test_claims_of_a_token(store: KeyStore, claims: dict[str, Any], reason: str) -> None:
    """A token works longer than it says, or forever."""
    assert _reason(store, _token(store.create("ann"), **claims)) == reason


def test_skew_of_a_clock(store: KeyStore) -> None:
    """A client whose clock is four minutes off cannot use the server."""
    key = store.create("ann")
    for minutes in (-4, 4):
        signed = int(NOW * 1000) + minutes * 60_000
        store.verify(_token(key, timestamp=signed, exp=signed + HOUR_MS // 2))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "sign_type": "SIGN"},
        {"alg": "None", "sign_type": "SIGN"},
        {"alg": "RS256", "sign_type": "SIGN"},
        {"alg": "HS512", "sign_type": "SIGN"},
        {"alg": ["HS256"], "sign_type": "SIGN"},
        {"alg": "HS256"},
        {"alg": "HS256", "sign_type": "OTHER"},
        {"alg": "HS256", "sign_type": "SIGN", "crit": ["x"], "x": 1},
        {},
    ],
)
def test_only_one_algorithm(store: KeyStore, header: dict[str, Any]) -> None:
    """Whoever writes the token chooses how it is checked: not at all, for example."""
    token = _token(store.create("ann"), header)
    assert _reason(store, token) == "malformed"
    assert _reason(store, token.rpartition(".")[0] + ".") == "malformed"


def test_a_signature_is_checked_before_the_times(store: KeyStore) -> None:
    """The code of an expired token tells a stranger that an id exists."""
    key = store.create("ann")
    forged = key.split(".")[0] + ".guessed"
    assert _reason(store, _token(forged, exp=1)) == "refused"
    assert _reason(store, _token(forged)) == "refused"
    assert _reason(store, _token("0123456789abcdef.guessed", exp=1)) == "refused"
    good = _token(key)
    assert _reason(store, good[:-4] + ("AAAA" if good[-4:] != "AAAA" else "BBBB")) == "refused"


def test_failures_look_the_same(store: KeyStore, database: Counted) -> None:
    """An answer, or the work behind it, tells which ids exist."""
    plain, revoked = store.create("a", signs_tokens=False), store.create("b")
    store.revoke(revoked.split(".")[0])
    wrong = plain.split(".")[0] + ".wrong"
    errors, reads = set(), set()
    for sent in ("nobody.wrong", wrong, revoked, _token(revoked), _token(plain), _token(wrong)):
        before = database.num_reads
        with pytest.raises(AuthenticationFailed) as failed:
            store.verify(sent)
        errors.add((str(failed.value), failed.value.reason))
        reads.add(database.num_reads - before)
    assert (len(errors), reads) == (1, {1})


def test_unknown_ids_cost_what_known_ones_do(
    store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time of an answer tells which ids exist."""
    compared: list[tuple[int, int]] = []
    compare = hmac.compare_digest

    def record(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", record)
    known = store.create("ann").split(".")[0]
    for sent in ("nobody.wrong", f"{known}.wrong", _token("nobody.wrong"), _token(f"{known}.w")):
        _reason(store, sent)
    assert compared == [(32, 32)] * 4


def test_nothing_kept_opens_anything(store: KeyStore, tmp_path: Path) -> None:
    """A stolen database, or a listing, holds usable keys."""
    keys = [store.create("ann"), store.create("bob", signs_tokens=False)]
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    listed = repr(store.list_keys())
    for key in keys:
        key_id, secret = key.split(".")
        assert key_id.encode() in kept
        assert secret.encode() not in kept
        assert secret not in listed
        assert hashlib.sha256(secret.encode()).digest() not in kept
        assert base64.urlsafe_b64decode(secret) not in kept
        assert len(base64.urlsafe_b64decode(secret)) >= 16
    signs_tokens = {info.name: info.signs_tokens for info in store.list_keys()}
    assert signs_tokens == {"ann": True, "bob": False}


def test_files_are_private(store: KeyStore, tmp_path: Path) -> None:
    """Others on the machine read keys, and what was asked."""
    store.create("ann")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()}
    assert {"serve.db", "serve.key"} <= set(modes)
    assert set(modes.values()) == {0o600}
    os.chmod(tmp_path / "serve.key", 0o640)
    with pytest.raises(ConfigError, match="0640"):
        KeyStore(store._database, tmp_path / "serve.key")


def test_another_master_key(
    store: KeyStore, database: Counted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a lost master key all keys are lost, or the owner never learns why tokens fail."""
    key = store.create("ann")
    other = KeyStore(database, tmp_path / "other.key", now=lambda: NOW)
    assert other.verify(key).name == "ann"
    with caplog.at_level(logging.ERROR):
        assert _reason(other, _token(key)) == "refused"
    assert key.split(".")[0] in caplog.text
    assert key.split(".")[1] not in caplog.text
    (tmp_path / "bad.key").write_bytes(b"no key")
    os.chmod(tmp_path / "bad.key", 0o600)
    with pytest.raises(ConfigError, match="not a master key"):
        KeyStore(database, tmp_path / "bad.key")


def test_verification_is_remembered_for_seconds(
    store: KeyStore, database: Counted, clock: Clock
) -> None:
    """Every request waits for the database; or a revoked key works on."""
    key = store.create("ann")
    assert store.cached(key) is None
    store.verify(key)
    reads = database.num_reads
    clock.seconds += SECONDS - 0.1
    assert store.cached(f"Bearer {key}") == store.verify(key)
    assert database.num_reads == reads
    clock.seconds += 0.1
    assert store.cached(key) is None
    token = _token(key, exp=int(clock.seconds * 1000) + 2000)
    store.verify(token)
    clock.seconds += 2
    assert _reason(store, token) == "expired"


def test_wrong_credentials_are_not_remembered() -> None:
    """Guessing drives out the keys of others, or fills the memory."""
    from openglm.serve.identity import Identity

    clock = Clock()
    remembered = Verified(clock)
    who = Identity("id", "ann", "user")
    for number in range(SIZE + 1):
        assert remembered.get(str(number)) is None
        remembered.put(str(number), who, 60, 0)
    assert remembered.get("0") is None
    assert remembered.get(str(SIZE)) == who
    assert len(remembered._found) == SIZE


def test_revocation(store: KeyStore, database: Counted, tmp_path: Path, clock: Clock) -> None:
    """A revoked key still works: here, or in another process after its memory has run out."""
    key = store.create("ann")
    other = KeyStore(database, tmp_path / "serve.key", now=clock, clock=clock)
    store.verify(key)
    other.verify(key)
    info = store.revoke(key.split(".")[0])
    assert info.revoked_at == int(NOW)
    assert _reason(store, key) == _reason(store, _token(key)) == "refused"
    clock.seconds += SECONDS
    assert _reason(other, key) == "refused"
    assert store.revoke(info.id).revoked_at == int(NOW)
    with pytest.raises(UsageError, match="no key"):
        store.revoke("unknown")


def test_revocation_during_a_verification(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that is revoked between the look into the database and the memory is remembered."""
    key = store.create("ann")
    find = store._find

    def find_then_revoke(key_id: str) -> Key:
        found = find(key_id)
        store.revoke(key_id)
        return found

    monkeypatch.setattr(store, "_find", find_then_revoke)
    store.verify(key)
    assert store.cached(key) is None


def test_last_use_is_noted_once_a_minute(store: KeyStore, clock: Clock) -> None:
    """Unused keys cannot be found, or every request writes."""
    key = store.create("ann")

    def last_used() -> int | None:
        return store.list_keys()[0].last_used_at

    assert last_used() is None
    store.verify(key)
    assert last_used() == int(NOW)
    for seconds, noted in ((30, NOW), (61, NOW + 61)):
        clock.seconds = NOW + seconds
        store.verify(key)
        assert last_used() == int(noted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"name": "a" * 65},
        {"name": "a\nb"},
        {"name": "\x1b[31m"},
        {"role": "root"},
        {"requests_per_minute": 0},
        {"concurrency": -1},
        {"tokens_per_day": 2**31},
    ],
)
def test_what_a_key_cannot_be(store: KeyStore, wrong: dict[str, Any]) -> None:
    """A limit of zero would lock a key out, or mean no limit; a name could forge log lines."""
    with pytest.raises(UsageError):
        store.create(**{"name": "ann", **wrong})
    assert store.list_keys() == []


def test_work_of_a_key_that_was_revoked(store: KeyStore) -> None:
    """What a key asked for goes on after it was revoked, or is done with other limits."""
    key = store.create("ann", "admin", tokens_per_day=7)
    key_id = key.split(".")[0]
    assert store.identity(key_id) == store.verify(key)
    store.revoke(key_id)
    for gone in (key_id, "0" * 32, store._nobody.id):
        with pytest.raises(AuthenticationFailed):
            store.identity(gone)


# The database


def test_migrations_make_the_tables(tmp_path: Path, database: Counted) -> None:
    """Tables changed without a revision: old databases lack a column."""
    engine = create_engine(f"sqlite:///{tmp_path / 'serve.db'}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


def test_database_of_a_newer_version(tmp_path: Path, database: Counted) -> None:
    """An older openglm writes into tables that it does not know."""
    with database.writing() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999, made by a newer"):
        Database(f"sqlite:///{tmp_path / 'serve.db'}")


def test_a_migration_happens_once(tmp_path: Path) -> None:
    """Servers that start together both create the tables, and one dies."""
    url = f"sqlite:///{tmp_path / 'serve.db'}"
    with ThreadPoolExecutor(4) as pool:
        databases = list(pool.map(Database, [url] * 4))
    for database in databases:
        with database.reading() as session:
            assert session.scalars(select(Key)).all() == []
        database.close()


def test_writers_wait_for_each_other(database: Counted) -> None:
    """Two that read, then write, fail with "database is locked" although there is time."""

    def add(number: int) -> None:
        for step in range(5):
            with database.writing() as session:
                seen = len(session.scalars(select(Key)).all())
                key_id = f"{number}-{step}"
                session.add(
                    Key(id=key_id, name=str(seen), role="user", salt=b"", digest=b"", created_at=0)
                )

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    with database.reading() as session:
        assert sorted(int(key.name) for key in session.scalars(select(Key))) == list(range(20))


def test_a_failed_write_leaves_nothing(database: Counted) -> None:
    """Half of what belongs together stays."""

    def fail() -> None:
        with database.writing() as session:
            session.add(Key(id="a", name="a", role="user", salt=b"", digest=b"", created_at=0))
            session.flush()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    with database.reading() as session:
        assert session.get(Key, "a") is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("no url with s3cret", "is not a URL"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite:////nowhere/serve.db", "there is no folder /nowhere"),
        ("unknown://user:s3cret@host/name", "not a known kind"),
        ("mssql://user:s3cret@host/name", "not installed"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    """A bare traceback, or a password in it."""
    with pytest.raises(ConfigError, match=message) as error:
        Database(url)
    assert "s3cret" not in str(error.value)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """A bare traceback of a driver."""
    path = tmp_path / "serve.db"
    path.write_bytes(b"something else" * 100)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="cannot be opened"):
        Database(f"sqlite:///{path}")


def test_readers_do_not_wait_for_a_writer(tmp_path: Path, database: Counted) -> None:
    """Without the write-ahead log a long write stops every verification."""
    other = sqlite3.connect(tmp_path / "serve.db", isolation_level=None)
    other.execute("begin exclusive")
    with database.reading() as session:
        assert session.scalars(select(Key)).all() == []
    other.close()


# The command line


def test_keys_by_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key cannot be made, found or ended without writing Python."""
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path / "home"))

    def run(*words: str) -> Any:
        assert _run(["keys", *words, "--json"], False) == 0
        return json.loads(capsys.readouterr().out)

    options = ["--role", "admin", "--rpm", "7", "--concurrency", "3", "--tokens-per-day", "100"]
    made = run("create", "ann", *options, "--no-jwt")
    (listed,) = run("list")
    assert made["key"].split(".")[0] == made["id"] == listed["id"]
    assert (listed["name"], listed["role"], listed["signs_tokens"]) == ("ann", "admin", False)
    assert (listed["requests_per_minute"], listed["concurrency"]) == (7, 3)
    assert listed["tokens_per_day"] == 100
    assert made["key"].split(".")[1] not in json.dumps(listed)
    assert run("revoke", made["id"])["revoked_at"] is not None
    assert _run(["keys", "revoke", "unknown"], False) == 2
    assert "there is no key 'unknown'" in capsys.readouterr().err

    assert _run(["keys", "create", "bob"], False) == 0
    shown = capsys.readouterr().out
    key = next(word for word in shown.split() if word.count(".") == 1 and len(word) == 65)
    assert _run(["keys", "list"], False) == 0
    shown = capsys.readouterr().out
    assert key.split(".")[0] in shown
    assert key.split(".")[1] not in shown
    database = Database()
    assert KeyStore(database).verify(key).name == "bob"
    database.close()


def test_keys_in_another_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that keeps its keys elsewhere has none of the command line's."""
    monkeypatch.setenv("OPENGLM_HOME", str(tmp_path))
    url = f"sqlite:///{tmp_path / 'other.db'}"
    assert _run(["keys", "create", "ann", "--database", url], False) == 0
    assert not (tmp_path / "serve.db").exists()
    assert (tmp_path / "other.db").exists()
    assert _run(["keys", "list", "--database", "nonsense"], False) == 3


def test_light_imports() -> None:
    """Keys, limits and the guard load torch: every `glm keys` and every test of them is slow."""
    parts = ("access", "database", "guard", "keys", "limits")
    code = "".join(f"import openglm.serve.{part}\n" for part in parts)
    code += "import sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import openglm.cli.main as m, sys; m._run(['keys', '--help'], False)\n"
    code += "assert not {'sqlalchemy', 'fastapi', 'cryptography'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
