"""Endpoints of OpenAI and BigModel that are not here: each says so, in its dialect."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Depends

from openglm.serve.errors import ServeError
from openglm.serve.service import Call, call

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
OPENAI = {
    "assistants": "assistants",
    "audio": "speech and transcription",
    "containers": "containers",
    "conversations": "stored conversations",
    "evals": "evaluations",
    "fine_tuning": "fine-tuning jobs",
    "images": "images",
    "moderations": "moderation",
    "realtime": "realtime sessions",
    "responses": "responses: ask chat/completions",
    "threads": "threads",
    "uploads": "uploads in parts: send files whole",
    "vector_stores": "vector stores",
    "videos": "videos",
}
BIGMODEL = {
    "assistant": "assistants",
    "async/images": "images",
    "audio": "speech and transcription",
    "document": "knowledge bases",
    "files/ocr": "reading of documents",
    "files/parser": "reading of documents",
    "fine_tuning": "fine-tuning jobs",
    "images": "images",
    "knowledge": "knowledge bases",
    "layout_parsing": "reading of documents",
    "moderations": "moderation",
    "reader": "reading of web pages",
    "rerank": "ranking of texts",
    "tools": "tools of the server's own",
    "v1/agents": "agents",
    "videos": "videos",
    "voice": "voices",
    "web_search": "searching the web",
}
"""Beginnings of paths -> what is behind them."""


def router_of(paths: Mapping[str, str]) -> APIRouter:
    """Answers everything under these paths with an error, whatever is sent."""
    router = APIRouter(include_in_schema=False)
    for path, what in paths.items():
        answer = _Absent(what)
        for route in (f"/{path}", f"/{path}/{{rest:path}}"):
            router.add_api_route(route, answer.refuse, methods=METHODS)
    return router


class _Absent:
    """What is not here."""

    def __init__(self, what: str) -> None:
        self.what = what

    async def refuse(self, call: Annotated[Call, Depends(call)]) -> None:
        """Says so.

        Raises:
            ServeError: always.
        """
        path = call.request.url.path
        raise ServeError("not_available", f"{path} is not available here yet ({self.what})")
