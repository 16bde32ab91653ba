"""Servers for tests: models that answer by a script, and a server in a thread."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.types import ASGIApp
from torch import Tensor

from helpers_gguf import small_tokenizer
from helpers_models import tiny_config
from openglm.kernels.paged_attention import PAGE_TOKENS
from openglm.language_model import LanguageModel
from openglm.model import Transformer
from openglm.serve.app import create_app
from openglm.serve.database import Database
from openglm.serve.files import FileSettings
from openglm.serve.identity import Role
from openglm.serve.keys import KeyStore
from openglm.serve.known import Known
from openglm.serve.settings import ServeSettings
from openglm.tokenizers import Tokenizer

Script = Callable[[str], str]
"""The conversation with its command tokens written out -> what the model writes."""


class ScriptedNetwork(Transformer):
    """Writes what a script says; everything else about it is a network in an engine.

    It remembers the tokens in each slot of the pages, so it sees what attention would see.
    """

    def __init__(self, tokenizer: Tokenizer, script: Script, length: int = 2048) -> None:
        axes = {"position": "rotary", "activation": "swiglu", "norm": "rmsnorm"}
        vocab_size = tokenizer.vocab_size
        super().__init__(tiny_config(vocab_size=vocab_size, max_position_embeddings=length, **axes))
        self.tokenizer = tokenizer
        self.script = script
        self.seen: dict[int, int] = {}  # slot -> token
        self.ask_id = tokenizer.special.get("assistant").id
        self.asking_ids = {tokenizer.special.get(role).id for role in ("user", "observation")}
        self.end_id = tokenizer.special.get("user").id

    def run(self, input_ids, position_ids, block_position_ids, context) -> Tensor:
        segments = context.segments
        self.seen |= zip(segments.slots.tolist(), input_ids[0].tolist(), strict=True)
        hidden = torch.zeros(1, input_ids.shape[1], self.config.hidden_size)
        for row, length in enumerate(segments.lengths.tolist()):
            places = range(length)
            pages = segments.pages[row].tolist()
            slots = [pages[i // PAGE_TOKENS] * PAGE_TOKENS + i % PAGE_TOKENS for i in places]
            hidden[0, int(segments.starts[row + 1]) - 1, 0] = self._next(
                [self.seen[s] for s in slots]
            )
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(*hidden.shape[:-1], self.config.vocab_size)
        return logits.scatter_(-1, hidden[..., :1].long(), 30.0)

    def _next(self, ids: list[int]) -> int:
        asking = [index for index, token in enumerate(ids) if token in self.asking_ids]
        if not asking:
            return self.end_id  # no conversation
        asked = asking[-1]
        if self.ask_id not in ids[asked:]:
            return self.end_id  # a long conversation is read in pieces
        turn = ids.index(self.ask_id, asked) + 1
        answer, written = self.script(self._spell(ids[:turn])), ids[turn:]
        expected = self.tokenizer.encode_with(answer, {"<|assistant|>"})
        if written != expected[: len(written)]:  # it began in other tokens
            begun = self._spell(written)
            rest = answer[len(begun) :] if answer.startswith(begun) else ""
            expected = [*written, *self.tokenizer.encode_with(rest, {"<|assistant|>"})]
        return (expected[len(written) :] or [self.end_id])[0]

    def _spell(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, special=True)


def scripted(
    folder: Path, script: Script, name: str = "glm-4", kind: str = "glm4"
) -> LanguageModel:
    """A chat model that answers as `script` says."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = small_tokenizer(kind, folder)
    network = ScriptedNetwork(tokenizer, script).eval().requires_grad_(False)
    return LanguageModel(network, tokenizer, name)


@contextmanager
def serving(
    models: Mapping[str, LanguageModel | Known],
    requests_per_minute: int = 10**6,
    concurrency: int = 10**3,
    around: Callable[[ASGIApp, str], ASGIApp] = lambda app, key: app,
    with_keys: Callable[[KeyStore], object] = lambda keys: None,
    role: Role = "user",
    **settings: Any,
) -> Iterator[tuple[str, str]]:
    """A server on loopback; its address, and a key with these limits.

    `around` makes another app of the server's, given that and the key; `with_keys` may make more
    keys.
    """
    with tempfile.TemporaryDirectory() as folder:
        database = Database(f"sqlite:///{folder}/serve.db")
        keys = KeyStore(database, Path(folder) / "serve.key")
        bounds = {"requests_per_minute": requests_per_minute, "concurrency": concurrency}
        key = keys.create("test", role, **bounds)
        with_keys(keys)
        settings.setdefault("files", FileSettings(Path(folder) / "files"))
        app = around(create_app(models, database, keys, ServeSettings(**settings)), key)
        server = uvicorn.Server(uvicorn.Config(app, "127.0.0.1", 0, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield f"http://127.0.0.1:{port}", key
        finally:
            server.should_exit = True
            thread.join()
            database.close()
