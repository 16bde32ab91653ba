"""What is accepted now and answered later: batches, and BigModel's asynchronous conversations."""

from fastapi import APIRouter

from openglm.serve.background import async_chat, batch_calls, batches
from openglm.serve.keys import KeyStore
from openglm.serve.service import Service
from openglm.serve.worker import Kind

openai_router = APIRouter()
openai_router.include_router(batch_calls.router)
bigmodel_router = APIRouter()
for part in (batch_calls, async_chat):
    bigmodel_router.include_router(part.router)

BATCHES_AT_ONCE = 2
CHATS_AT_ONCE = 8


def kinds(service: Service, keys: KeyStore) -> dict[str, Kind]:
    """All kinds of work of a server, for its worker."""
    return {
        batches.KIND: Kind(batches.Batches(service, keys).work, BATCHES_AT_ONCE, is_kept=True),
        async_chat.KIND: Kind(async_chat.Chats(service, keys).work, CHATS_AT_ONCE, is_kept=False),
    }
