"""The server's state in PostgreSQL: a real server of this test's own, on a socket in a folder."""

from __future__ import annotations

import datetime
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the server is an extra: '.[serve]'")
pytest.importorskip("psycopg", reason="the driver is an extra: '.[postgres]'")

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text

from openglm.errors import ConfigError
from openglm.serve.database import Database
from openglm.serve.errors import ServeError
from openglm.serve.files import Files, FileSettings
from openglm.serve.identity import AuthenticationFailed
from openglm.serve.jobs import ClaimLost, Jobs, Outcome
from openglm.serve.keys import KeyStore
from openglm.serve.listing import Page
from openglm.serve.tables import Base, Job
from openglm.serve.usage import Count, add_usage, read_usage


def _programs() -> Path | None:
    """The folder of initdb and pg_ctl, where Debian puts them or on the path."""
    found = shutil.which("pg_ctl")
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
    places = [*debian, *([Path(found)] if found else [])]
    return places[-1].parent if places else None


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """An empty database; PostgreSQL refuses to run as root, so then it runs as its own user."""
    programs = _programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt install postgresql)")
    owner = "postgres" if os.geteuid() == 0 else None
    if owner and owner not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip("run as root, and there is no user postgres to run PostgreSQL as")
    with tempfile.TemporaryDirectory(prefix="pg", dir="/tmp") as folder:  # short: a socket
        if owner:
            shutil.chown(folder, owner)
        data = f"{folder}/data"

        def run(program: str, *words: str) -> None:
            command = [str(programs / program), "-D", data, *words]
            subprocess.run(command, check=True, user=owner, cwd=folder, stdout=subprocess.DEVNULL)

        run("initdb", "-U", "glm", "-A", "trust", "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c fsync=off"
        run("pg_ctl", "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://glm@/postgres?host={folder}"
        finally:
            run("pg_ctl", "-w", "-m", "immediate", "stop")


def test_servers_that_start_together(url: str) -> None:
    """Both create the tables, and one dies; or the tables are not those that the code means."""
    with ThreadPoolExecutor(4) as pool:
        for database in list(pool.map(Database, [url] * 4)):
            database.close()
    engine = create_engine(url)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


def test_keys(url: str, tmp_path: Path) -> None:
    """Something in the keys is SQLite's alone."""
    database = Database(url)
    store = KeyStore(database, tmp_path / "serve.key")
    key = store.create("ann", "admin", tokens_per_day=2**31 - 1)
    assert store.verify(key).role == "admin"
    store.revoke(key.split(".")[0])
    for wrong in (key, "a\x00b.c", "unknown.secret"):
        with pytest.raises(AuthenticationFailed):
            store.verify(wrong)
    assert [info.last_used_at is not None for info in store.list_keys()] == [True]
    database.close()


def test_several_servers_count_into_one_row(url: str) -> None:
    """Counts overwrite each other, or the first of a day collide."""
    place = ("a" * 32, datetime.date(2027, 1, 15))
    databases = [Database(url) for _ in range(4)]

    def count(database: Database) -> None:
        for _ in range(10):
            add_usage(database, {place: Count(1, 2, 1)})

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, databases))
    assert read_usage(databases[0], place) == Count(40, 80, 40)
    for database in databases:
        database.close()


def test_files(url: str, tmp_path: Path) -> None:
    """Something in files is SQLite's alone; or uploads at once exceed a quota together."""
    database = Database(url)
    key_id = KeyStore(database, tmp_path / "serve.key").create("ann").split(".")[0]
    files = Files(database, FileSettings(tmp_path / "files", key_bytes=35, spare_bytes=0))

    def upload(number: int) -> str:
        try:
            return files.add(key_id, f"{number}.jsonl", "batch", [b"0" * 10]).id
        except ServeError:
            return ""

    with ThreadPoolExecutor(4) as pool:
        every = [file_id for file_id in pool.map(upload, range(8)) if file_id]
    assert len(every) == 3
    first, more = files.list(key_id, Page(limit=2), "batch")
    second, none = files.list(key_id, Page(limit=2, after=first[-1].id))
    assert {file.id for file in [*first, *second]} == set(every)
    assert (more, none) == (True, False)
    for wrong in ("\x00", "x", f"file-{'0' * 32}"):
        with pytest.raises(ServeError):
            files.get(key_id, wrong)
    assert files.list(key_id, Page(), "\x00") == ([], False)
    files.delete(key_id, every[0])
    files.sweep()
    database.close()


def test_jobs(url: str) -> None:
    """Two servers take one job, or both store its end."""
    databases = [Database(url) for _ in range(4)]
    every = [Jobs(database) for database in databases]
    odd = {"text": "\x00 \ud800 你好"}

    def add(number: int) -> str:
        job = Job(id=f"batch_{number:032x}", key_id=str(number % 3), kind="batch", body=odd)
        return every[0].add(job).id

    def take(jobs: Jobs) -> list[Job]:
        found = []
        while (job := jobs.claim("batch", str(id(jobs)))) is not None:
            found.append(job)
        return found

    names = {add(number) for number in range(20)}
    with ThreadPoolExecutor(4) as pool:
        found = [job for some in pool.map(take, every) for job in some]
    assert len(found) == 20
    assert {job.id for job in found} == names
    assert found[0].body == odd
    job, jobs = found[0], every[0]
    with ThreadPoolExecutor(4) as pool:  # one worker's saves, at once
        list(pool.map(lambda one: one.answer(job, 1, True, "x"), every))
    jobs.answer(job, 2, False, "y")
    assert list(jobs.answers(job)) == [(True, "x"), (False, "y")]
    assert jobs.count_answers(job) == (1, 1)
    jobs.note(job, {"total": 2})
    assert job.worker is not None
    assert jobs.renew(job.worker)[job.id] is False
    assert jobs.cancel("batch", job.key_id, job.id).cancelling_at is not None
    assert jobs.renew(job.worker)[job.id] is True
    jobs.finish(job, Outcome("cancelled", {"completed": 1}))
    with pytest.raises(ClaimLost):
        every[1].finish(job, Outcome("completed"))
    rows, _ = jobs.list("batch", job.key_id, Page())
    assert [row.status for row in rows if row.id == job.id] == ["cancelled"]
    with pytest.raises(ServeError, match="in work"):
        jobs.add(Job(id="batch_x", key_id=found[1].key_id, kind="batch", body=odd), "batch_")
    jobs.put_back(found[1])
    jobs.forget("batch")
    for database in databases:
        database.close()


def test_an_open_database_outlives_a_lost_connection(url: str) -> None:
    """After the database server restarted, the first request of each connection fails."""
    database = Database(url)
    place = ("b" * 32, datetime.date(2027, 1, 15))
    assert read_usage(database, place) == Count()
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
        )
    engine.dispose()
    assert read_usage(database, place) == Count()
    database.close()


def test_newer_and_unreachable_databases(url: str) -> None:
    """A bare traceback of a driver."""
    database = Database(url)
    with database.writing() as session:
        session.execute(text("update alembic_version set version_num = '9999'"))
    with pytest.raises(ConfigError, match="9999, made by a newer"):
        Database(url)
    with database.writing() as session:
        session.execute(text("update alembic_version set version_num = '0002'"))
    database.close()
    with pytest.raises(ConfigError, match="cannot be opened"):
        Database("postgresql://glm:s3cret@/postgres?host=/nowhere")
