"""The dialect of OpenAI, under /v1."""

from fastapi import APIRouter

from openglm.serve import absent
from openglm.serve.openai import chat, completions, embeddings, files, fill, loading, models

router = APIRouter()
for part in (chat, completions, embeddings, fill, models, loading, files):
    router.include_router(part.router)
router.include_router(absent.router_of(absent.OPENAI))
