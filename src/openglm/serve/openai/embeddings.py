"""POST /v1/embeddings: texts as vectors."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from fastapi import APIRouter, Depends, Response
from torch import Tensor

from openglm.engine.embedding import MeanState
from openglm.serve.bounds import MOST_TEXTS
from openglm.serve.errors import ServeError
from openglm.serve.fields import Wire, ignored
from openglm.serve.hosted import Hosted
from openglm.serve.openai.requests import Count, Ids
from openglm.serve.reading import read_all
from openglm.serve.runner import Place
from openglm.serve.service import Call, Errand, call
from openglm.serve.writing import Meter, Usage

router = APIRouter()


class EmbeddingRequest(Wire):
    """POST /v1/embeddings."""

    model: str
    input: str | list[str] | Ids | list[Ids]
    dimensions: Count | None = None
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def own_id(self) -> str | None:
        """How the client names its call; OpenAI's clients do not."""
        return None

    def texts(self, most: int = MOST_TEXTS) -> list[str]:
        """The texts to read.

        Raises:
            ServeError: none, too many, or tokens: clients send those of another vocabulary.
        """
        found = [self.input] if isinstance(self.input, str) else self.input
        if not 1 <= len(found) <= most:
            message = f"input has {len(found)} texts; 1 to {most} are allowed"
            raise ServeError("invalid_field", message, "input")
        if not all(isinstance(text, str) for text in found):
            message = (
                "input has token ids, which mean other words here than in OpenAI's vocabulary: "
                "send texts (LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
            )
            raise ServeError("unsupported", message, "input")
        return [text for text in found if isinstance(text, str)]


@router.post("/embeddings", response_model=None)
async def embeddings(body: EmbeddingRequest, call: Annotated[Call, Depends(call)]) -> Response:
    """A vector for each text."""
    found = await begin(body, call)
    return await call.whole(found.collect(), ignored(body))


async def begin(body: EmbeddingRequest, errand: Errand) -> Vectors:
    """What will answer.

    Raises:
        OpenGLMError: the call cannot be honoured.
    """
    hosted = errand.models.find(body.model)
    texts = body.texts()
    width = hosted.model.config.hidden_size
    if body.dimensions is not None and body.dimensions > width:
        message = f"dimensions={body.dimensions}: the vectors of {hosted.name} have {width}"
        raise ServeError("invalid_field", message, "dimensions")
    async with errand.entering(hosted):
        errand.claim(body.own_id)
        readings = await hosted.vectors(texts)
        errand.reserve(sum(len(reading.track) for reading in readings))
    return Vectors(body, hosted, readings, errand.place, errand.meter(hosted.name))


@dataclass(frozen=True, slots=True)
class Vectors:
    """The object that answers a call.

    Args:
        body: the call.
        hosted: the model.
        readings: of the texts.
        place: whose the call is.
        meter: is told how it goes.
    """

    body: EmbeddingRequest
    hosted: Hosted
    readings: list[MeanState]
    place: Place
    meter: Meter

    async def collect(self) -> dict[str, Any]:
        """All vectors, once the texts are read."""
        used = Usage(prompt_tokens=sum(len(reading.track) for reading in self.readings))
        try:
            self.meter.started()
            await read_all(self.hosted.runner, self.readings, self.place)
        finally:
            self.meter.close(used)
        vectors = torch.stack([reading.vector for reading in self.readings])
        return {
            "object": "list",
            "model": self.body.model,
            "data": [
                {"object": "embedding", "index": index, "embedding": vector}
                for index, vector in enumerate(written(vectors, self.body))
            ],
            "usage": {"prompt_tokens": used.prompt_tokens, "total_tokens": used.prompt_tokens},
        }


def written(vectors: Tensor, body: EmbeddingRequest) -> list[list[float]] | list[str]:
    """(N, C) vectors as the client wants them: cut and of length 1 again, as numbers or base64.

    base64 is of float32 in little-endian order, as OpenAI writes it.
    """
    if body.dimensions is not None:
        vectors = torch.nn.functional.normalize(vectors[:, : body.dimensions], dim=1)
    if body.encoding_format != "base64":
        return vectors.tolist()
    return [base64.b64encode(row.tobytes()).decode() for row in vectors.numpy().astype("<f4")]
