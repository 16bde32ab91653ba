"""What the tests of the server's state share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def database(tmp_path: Path) -> Iterator[object]:
    """An empty `Database` in a file of its own."""
    from openglm.serve.database import Database  # here: other tests need no SQLAlchemy

    opened = Database(f"sqlite:///{tmp_path / 'serve.db'}")
    yield opened
    opened.close()
