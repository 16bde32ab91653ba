"""`Known`: a model that may be served, whether it is loaded now or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from openglm.language_model import LanguageModel
from openglm.log import logger
from openglm.serve.errors import ServeError
from openglm.serve.hosted import Hosted

State = Literal["unloaded", "loading", "loaded", "unloading"]
SAYINGS: Mapping[State, str] = {
    "unloaded": "is not loaded: an admin loads it with POST /v1/models/load",
    "loading": "is being loaded",
    "loaded": "is loaded",
    "unloading": "is being unloaded",
}
RETRY_SECONDS = 5.0
"""When to ask again for a model that is on its way."""


def _nothing() -> None:
    """Of a model that is in memory anyway."""


@dataclass(slots=True, kw_only=True, eq=False)
class Known:
    """A model that may be served.

    Args:
        name: as clients ask for it.
        read: gives the model, in a thread: that may take minutes.
        check: raises `ServeError` if there is no memory for it.
        engine: settings of its engine; see `Engine`.
        loads_at_start: whether the server loads it before it answers.

    Attributes:
        state: where it stands. `Models` changes it.
        hosted: the model with its engine, from "loaded" to the end of "unloading".
        task: that loads or unloads it.
        created: seconds since 1970 at which it was made known.
    """

    name: str
    read: Callable[[], LanguageModel]
    check: Callable[[], None] = _nothing
    engine: Mapping[str, Any] = field(default_factory=dict)
    loads_at_start: bool = True
    state: State = field(default="unloaded", init=False)
    hosted: Hosted | None = field(default=None, init=False)
    task: asyncio.Task[None] | None = field(default=None, init=False)
    created: int = field(default_factory=lambda: int(time.time()), init=False)
    _in_advance: LanguageModel | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Reads the model before there is a server, so that who starts it sees what is wrong.

        An estimate that it does not fit is only a warning here: nobody else is disturbed yet.
        """
        try:
            self.check()
        except ServeError as error:
            logger.warning("%s", error)
        self._in_advance = self.read()

    def take(self) -> LanguageModel:
        """The model, of which nothing is kept here."""
        model, self._in_advance = self._in_advance, None
        return model or self.read()


class NotLoaded(ServeError):
    """A model that is known, but cannot be asked now; 503.

    Args:
        known: the model.
    """

    def __init__(self, known: Known) -> None:
        is_coming = known.state == "loading"
        message = f"the model {known.name!r} {SAYINGS[known.state]}"
        super().__init__("unavailable", message, "model", RETRY_SECONDS if is_coming else None)
