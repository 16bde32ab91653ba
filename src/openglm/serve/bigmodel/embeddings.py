"""POST /api/paas/v4/embeddings."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response

from openglm.serve.bigmodel.requests import RequestId
from openglm.serve.fields import ignored
from openglm.serve.openai.embeddings import EmbeddingRequest, Vectors, begin
from openglm.serve.service import Call, call

router = APIRouter()
MOST_TEXTS = 64
"""BigModel's limit."""


class V4EmbeddingRequest(EmbeddingRequest):
    """POST /api/paas/v4/embeddings."""

    request_id: RequestId | None = None

    @property
    def own_id(self) -> str | None:
        """See `EmbeddingRequest.own_id`."""
        return self.request_id

    def texts(self, most: int = MOST_TEXTS) -> list[str]:
        """See `EmbeddingRequest.texts`."""
        return super().texts(most)


@router.post("/embeddings", response_model=None)
async def embeddings(body: V4EmbeddingRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """A vector for each text."""
    found = await begin(body, call)
    return await call.whole(collect(found), ignored(body))


async def collect(found: Vectors) -> dict[str, Any]:
    """All vectors; BigModel's clients need to read that nothing was written, too."""
    answer = await found.collect()
    own = {} if found.body.own_id is None else {"request_id": found.body.own_id}
    return answer | own | {"usage": {"completion_tokens": 0, **answer["usage"]}}
