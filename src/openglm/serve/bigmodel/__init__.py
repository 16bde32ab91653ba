"""The dialect of BigModel (Zhipu AI), under /api/paas/v4."""

from fastapi import APIRouter

from openglm.serve import absent
from openglm.serve.bigmodel import chat, embeddings
from openglm.serve.openai import files, models

router = APIRouter()
for part in (chat, embeddings, models, files):
    router.include_router(part.router)
router.include_router(absent.router_of(absent.BIGMODEL))
