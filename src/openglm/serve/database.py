"""The server's database: SQLite beside the models, or any other that SQLAlchemy can reach by URL.

Calls block, so asynchronous code makes them in a thread:

    database = Database()
    with database.reading() as session:
        key = session.get(Key, key_id)
    with database.writing() as session:  # commits at the end, rolls back on an error
        session.add(Usage(...))
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.orm import Session

from openglm.errors import ConfigError
from openglm.home import home
from openglm.serve.migrate import upgrade
from openglm.serve.private_files import create_private

WRITES = "openglm_writes"
"""Option of a connection whose transactions write."""
BUSY_SECONDS = 30
"""How long one waits for another that writes, before the database is called locked."""


class Database:
    """An open database of the current revision.

    Args:
        url: as SQLAlchemy writes it, e.g. "postgresql://glm@127.0.0.1/glm"; by default the file
            `serve.db` in the user folder, which only its owner may read.

    Raises:
        ConfigError: the URL is malformed or unreachable, or the database is of a newer openglm.
    """

    def __init__(self, url: str | None = None) -> None:
        parsed = _parse(url or f"sqlite:///{home() / 'serve.db'}")
        self.url = parsed.render_as_string(hide_password=True)
        self._engine = _open(parsed)
        self._writer = self._engine.execution_options(**{WRITES: True})
        try:
            with self._writer.begin() as connection:
                upgrade(connection)
        except DatabaseError as error:
            self.close()
            raise ConfigError(f"the database {self.url} cannot be opened: {error.orig}") from error
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database; what it changes is not kept."""
        with Session(self._engine) as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A session in a transaction; objects stay usable after its end."""
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Closes all connections."""
        self._engine.dispose()


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError as error:  # not shown: it may hold a password
        raise ConfigError(
            "the database is not a URL", hint="for example postgresql://user@host/name"
        ) from error
    file = parsed.database or ":memory:"
    if parsed.get_backend_name() == "sqlite" and file.startswith((":memory:", "file:")):
        raise ConfigError(f"{url} names no file", hint="for example sqlite:////srv/glm/serve.db")
    return parsed


def _open(url: URL) -> Engine:
    options: dict[str, Any] = {
        "pool_pre_ping": True,  # a database server may have restarted
        "hide_parameters": True,  # errors are logged: prompts and answers must not be in them
    }
    is_sqlite = url.get_backend_name() == "sqlite"
    if is_sqlite:
        assert url.database is not None
        create_private(Path(url.database))  # SQLite gives its -wal and -shm files the same mode
        options["connect_args"] = {"timeout": BUSY_SECONDS}
    try:
        engine = create_engine(url, **options)
    except ArgumentError as error:
        raise ConfigError(f"{url.drivername} is not a known kind of database") from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the driver of {url.drivername} is not installed: {error}",
            hint="for PostgreSQL: pip install '.[postgres]'",
        ) from error
    if is_sqlite:
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: object) -> None:
    """Sets up a new connection.

    With a write-ahead log readers never wait for the writer. `synchronous` is full, its default:
    what was committed outlives a power cut.
    """
    connection.isolation_level = None  # the driver begins nothing by itself, `_begin_sqlite` does
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA foreign_keys=ON")


def _begin_sqlite(connection: Connection) -> None:
    """Takes the write lock at the start of a transaction that writes.

    Taken later, after a read, it fails at once instead of waiting if another wrote in between.
    """
    writes = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
