"""Alembic's folder: how a database of an older openglm becomes one of this."""
