"""Brings a database to the revision of this openglm."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, func, select

from openglm.errors import ConfigError

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x6F70656E676C6D
"""Of the advisory locks of a PostgreSQL database, ours: "openglm" in ASCII."""


def upgrade(connection: Connection) -> None:
    """Applies the revisions that are missing, within the transaction of `connection`.

    Raises:
        ConfigError: the database has a revision that this openglm does not know.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.migration import MigrationContext
    from alembic.script import ScriptDirectory

    if connection.dialect.name == "postgresql":  # SQLite holds its one lock from BEGIN IMMEDIATE
        connection.execute(select(func.pg_advisory_xact_lock(LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    script = ScriptDirectory.from_config(config)
    current = MigrationContext.configure(connection).get_current_revision()
    if current == script.get_current_head():
        return
    known = {revision.revision for revision in script.walk_revisions()}
    if current is not None and current not in known:
        raise ConfigError(
            f"the database has revision {current}, made by a newer openglm; "
            f"this one knows up to {script.get_current_head()}",
            hint="upgrade openglm, or name another database",
        )
    command.upgrade(config, "head")
