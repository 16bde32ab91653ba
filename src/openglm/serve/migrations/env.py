"""Run by alembic: applies revisions through the connection that `upgrade` put into the settings.

The transaction belongs to `upgrade`, so a migration that fails half-way leaves nothing behind.
"""

from __future__ import annotations

from alembic import context

from openglm.serve.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite cannot alter a table: it is copied instead
)
context.run_migrations()
