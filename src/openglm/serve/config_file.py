"""`serve.toml`: a server with its models in a file, read strictly.

    [server]
    port = 8080
    public_names = ["glm.example.org"]

    [limits]
    requests_per_minute = 120

    [[models]]
    source = "chatglm3-6b"          # a folder beside this file, or a downloaded model
    aliases = ["gpt-4o"]
    dtype = "int4-g64"

    [[models]]
    source = "mini"
    load = false                    # until an admin asks for it

Errors name the file, the key, the value, and what is allowed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from openglm.engine.engine import MOST_DRAFTS
from openglm.errors import ConfigError
from openglm.serve.limits import LimitSettings
from openglm.serve.model_table import ModelTable, at
from openglm.serve.origin import KnownNames
from openglm.settings import parse, read_toml

MOST = 1 << 31
BOUNDS: dict[str, tuple[float, float]] = {
    "port": (1, 65535),
    "drain_seconds": (0, 24 * 3600),
    "requests_per_minute": (1, MOST),
    "concurrency": (1, MOST),
    "tokens_per_day": (1, 1 << 53),
    "queue": (1, MOST),
    "memory_gib": (0.001, 1 << 20),
    "max_drafts": (0, MOST_DRAFTS),
    "max_batch_tokens": (1, 1 << 20),
}
"""Key of any table -> smallest and largest value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTable:
    """Where the server listens, and to whom.

    Args:
        host: address.
        port: of it.
        public_names: host names that clients use, besides localhost.
        origins: of web pages that may call it.
        drain_seconds: for calls in work at the end.
        legacy: POST / answers as the first servers of ChatGLM and CodeGeeX2 did.
        web_path: of the web page; None = /, if its packages are there.
        no_web: there is no web page.
        no_request_log: requests have no lines in the log.
        database: URL; None = SQLite in the user folder.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    public_names: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    drain_seconds: float = 60.0
    legacy: bool = False
    web_path: str | None = None
    no_web: bool = False
    no_request_log: bool = False
    database: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeFile:
    """A whole file."""

    server: ServerTable = field(default_factory=ServerTable)
    limits: LimitSettings = field(default_factory=LimitSettings)
    models: list[ModelTable] = field(default_factory=list)

    @property
    def aliases(self) -> dict[str, str]:
        """Further names of models -> names."""
        return {alias: model.served_name for model in self.models for alias in model.aliases}


def read_serve_file(path: Path) -> ServeFile:
    """Reads a file; relative paths in it become relative to its folder.

    Raises:
        ConfigError: it is missing, malformed, or has an unknown key or a value that is not allowed.
    """
    values = read_toml(path)
    folder = path.resolve().parent
    with at(str(path)):
        found = parse(ServeFile, values)
        server = _settled(found.server, folder)
        _check_bounds("limits", found.limits)
        models = []
        for index, model in enumerate(found.models):
            place = f"models[{index}]"
            _check_bounds(place, model)
            models.append(model.settled(folder, place))
        _check_names(models)
        return dataclasses.replace(found, server=server, models=models)


def _check_names(models: list[ModelTable]) -> None:
    """Checks that each name means one model; `ConfigError` if not."""
    owners: dict[str, int] = {}
    for index, model in enumerate(models):
        for name in (model.served_name, *model.aliases):
            if not name.isprintable() or name != name.strip() or not name:
                raise ConfigError(f"models[{index}]: {name!r} is no name: printable, not empty")
            if name in owners:
                raise ConfigError(
                    f"models[{index}]: the name {name!r} is that of models[{owners[name]}] already",
                    hint="names and aliases of all models differ",
                )
            owners[name] = index


def _check_bounds(place: str, table: Any) -> None:
    for one in dataclasses.fields(table):
        value = getattr(table, one.name)
        if one.name not in BOUNDS or value is None:
            continue
        least, most = BOUNDS[one.name]
        if not least <= value <= most:  # NaN neither
            raise ConfigError(f"{place}.{one.name}={value} must be from {least:,} to {most:,}")


def _settled(server: ServerTable, folder: Path) -> ServerTable:
    """The same, checked, with an absolute path of its database."""
    _check_bounds("server", server)
    if not server.host.strip():
        raise ConfigError("server.host='' must be an address", hint="127.0.0.1, 0.0.0.0, ::1 ...")
    with at("server.public_names"):
        KnownNames(server.public_names)
    with at("server.origins"):
        KnownNames((), server.origins)
    return dataclasses.replace(server, database=_database(server.database, folder))


def _database(url: str | None, folder: Path) -> str | None:
    """The URL of a database, that of a SQLite file with an absolute path."""
    if url is None:
        return None
    try:
        parsed = make_url(url)
    except ArgumentError as error:  # not shown: it may hold a password
        raise ConfigError(
            "server.database is not a URL", hint="for example sqlite:///serve.db"
        ) from error
    file = parsed.database or ""
    if parsed.get_backend_name() != "sqlite" or not file or file.startswith((":memory:", "file:")):
        return url  # `Database` says what is wrong with it
    path = folder / Path(file).expanduser()
    return parsed.set(database=str(path)).render_as_string(hide_password=False)
