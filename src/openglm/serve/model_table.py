"""`ModelTable`: one of the `[[models]]` of a `serve.toml`, or the one that a command names."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from openglm.engine.engine import MAX_BATCH_TOKENS
from openglm.engine.paged_cache import KV_DTYPES
from openglm.errors import ConfigError, OpenGLMError, suggest
from openglm.home import EMBEDDED, find_model
from openglm.loading import load, pick_device
from openglm.memory import parse_dtype_name
from openglm.serve.fitting import check_fits
from openglm.serve.known import Known

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """A model that may be served.

    Args:
        source: `mini`, a checkpoint folder, or a downloaded model; see `openglm.load`, as the next
            three.
        tokenizer: folder of the vocabulary, if it is not beside the weights.
        dtype: of the weights.
        device: where it runs.
        name: as clients ask for it; None = the last part of `source`.
        aliases: further names.
        load: whether it is loaded at the start.
        memory_gib: of keys and values; see `Engine`, as the next three.
        kv_dtype: of keys and values.
        max_drafts: tokens guessed ahead.
        max_batch_tokens: fed per step.
    """

    source: str
    tokenizer: str | None = None
    dtype: str = "auto"
    device: str = "auto"
    name: str | None = None
    aliases: list[str] = field(default_factory=list)
    load: bool = True
    memory_gib: float = 1.0
    kv_dtype: str = "auto"
    max_drafts: int = 0
    max_batch_tokens: int = MAX_BATCH_TOKENS

    @property
    def served_name(self) -> str:
        """What clients ask for."""
        return Path(self.source).name if self.name is None else self.name

    def known(self) -> Known:
        """The model as a server knows it."""
        cache_bytes = int(self.memory_gib * GIB)
        what = self.source, self.dtype, self.device
        return Known(
            name=self.served_name,
            read=partial(load, *what, self.tokenizer),
            check=partial(check_fits, self.served_name, *what, cache_bytes),
            engine={
                "memory_bytes": cache_bytes,
                "kv_dtype": self.kv_dtype,
                "max_drafts": self.max_drafts,
                "max_batch_tokens": self.max_batch_tokens,
            },
            loads_at_start=self.load,
        )

    def settled(self, folder: Path, place: str) -> ModelTable:
        """The same with absolute paths, checked as far as that goes without reading weights.

        Args:
            folder: that paths are relative to.
            place: of this table in its file, for messages.

        Raises:
            ConfigError: a value is not allowed; it names the key.
        """
        with at(f"{place}.source"):
            source = _source(self.source, folder)
        with at(f"{place}.dtype"):
            if self.dtype != "auto":
                parse_dtype_name(self.dtype)
        with at(f"{place}.device"):
            pick_device(self.device)
        if self.kv_dtype not in (known := ["auto", *KV_DTYPES]):
            hint = suggest(self.kv_dtype, known)
            raise ConfigError(f"{place}.kv_dtype={self.kv_dtype!r} is unknown", hint)
        if self.tokenizer is None:
            return dataclasses.replace(self, source=source)
        path = (folder / Path(self.tokenizer).expanduser()).resolve()
        if not path.exists():
            raise ConfigError(f"{place}.tokenizer={self.tokenizer!r}: there is no {path}")
        return dataclasses.replace(self, source=source, tokenizer=str(path))


@contextmanager
def at(place: str) -> Iterator[None]:
    """Says in front of an error where in a file its cause stands."""
    try:
        yield
    except OpenGLMError as error:
        raise ConfigError(f"{place}: {error.message}", error.hint) from error


def _source(text: str, folder: Path) -> str:
    """A path made absolute, or the name of a model, which is here; `ConfigError` if it is not."""
    if not text:
        raise ConfigError("the name is empty", hint="a folder, a downloaded model, or mini")
    path = (folder / Path(text).expanduser()).resolve()
    if text != EMBEDDED and path.exists():
        text = str(path)
    elif text != EMBEDDED and Path(text).exists():  # else it would be taken, wherever one stands
        raise ConfigError(
            f"{text!r} is not in {folder}", hint="paths in the file are relative to the file"
        )
    find_model(text)
    return text
