"""What the database says when it fails."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from sqlalchemy.exc import IntegrityError

from openglm.serve.database import Database
from openglm.serve.tables import Answer


def test_errors_hold_no_texts(tmp_path: Path) -> None:
    """A prompt or an answer gets into the log with the statement that failed."""
    database = Database(f"sqlite:///{tmp_path / 'serve.db'}")

    def store() -> None:
        with database.writing() as session:
            session.add(Answer(job_id="none", line=1, is_good=None, text="a secret"))

    with pytest.raises(IntegrityError) as failed:
        store()
    assert "INSERT" in str(failed.value)
    assert "a secret" not in str(failed.value)
    database.close()
