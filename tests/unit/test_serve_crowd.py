"""What is turned away when as many wait as may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is an extra: '.[serve]'")

from starlette.responses import PlainTextResponse, Response

from openglm.serve.crowd import Crowd
from openglm.serve.database import Database
from openglm.serve.identity import Identity
from openglm.serve.limits import LimitReached, Limits, LimitSettings

ANN = Identity("ann", "ann", "user")


async def _answer(scope: Any, receive: Any, send: Any) -> None:
    await PlainTextResponse("answered")(scope, receive, send)


def _refuse(scope: Any, error: LimitReached) -> Response:
    return PlainTextResponse(error.kind, 429)


async def _never() -> Any:
    raise AssertionError("the body is read")


def test_a_full_queue_reads_nothing(tmp_path: Path) -> None:
    """A refused call costs as much as an answer, or what needs no place is refused, too."""
    database = Database(f"sqlite:///{tmp_path / 'serve.db'}")

    async def run() -> None:
        limits = Limits(database, LimitSettings(queue=1))
        crowd = Crowd(_answer, lambda: limits, _refuse)

        async def status(method: str, path: str) -> int:
            found: list[int] = []

            async def send(message: Any) -> None:
                found.append(message.get("status"))

            scope = {"type": "http", "method": method, "path": path, "headers": []}
            await crowd(scope, _never, send)
            return found[0]

        calls = [
            ("POST", f"{dialect}/{name}")
            for dialect in ("/v1", "/api/paas/v4")
            for name in ("chat/completions", "completions", "fill", "embeddings")
        ]
        others = [("POST", "/v1/files"), ("GET", "/v1/models"), ("GET", "/v1/completions")]
        assert {await status(*one) for one in (*calls, *others)} == {200}
        with await limits.admit(ANN, 1) as admission:
            assert {await status(*one) for one in calls} == {429}
            assert {await status(*one) for one in others} == {200}
            admission.start()
            assert {await status(*one) for one in calls} == {200}
        await limits.close()

    asyncio.run(run())
    database.close()
