"""`Models`: all models of a server by name; they are loaded and unloaded while it runs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Mapping

import torch

from openglm.engine.engine import Engine, Statistics
from openglm.errors import OpenGLMError, suggest
from openglm.language_model import LanguageModel
from openglm.log import logger
from openglm.process import return_freed_memory
from openglm.serve.errors import ServeError, UnknownModel
from openglm.serve.hosted import Hosted
from openglm.serve.known import Known, NotLoaded
from openglm.serve.runner import EngineRunner


class Models:
    """All models that a server knows. Used in its event loop.

    Args:
        known: by name, the default first.
        aliases: further name -> name.
    """

    def __init__(self, known: Mapping[str, Known], aliases: Mapping[str, str]) -> None:
        self.known = dict(known)
        self.aliases = dict(aliases)
        self._one_by_one = asyncio.Lock()  # what fits is only certain once the one before is there

    @property
    def hosted(self) -> dict[str, Hosted]:
        """Those that answer now, by name, the default first."""
        return {
            name: one.hosted
            for name, one in self.known.items()
            if one.state == "loaded" and one.hosted is not None
        }

    @property
    def default(self) -> Hosted:
        """The first of all; `NotLoaded` if it does not answer now."""
        return self.find(next(iter(self.known)))

    def look_up(self, name: str) -> Known:
        """The model of a name or alias, loaded or not; `UnknownModel` if there is none."""
        found = self.known.get(self.aliases.get(name, name))
        if found is None:
            names = [*self.known, *self.aliases]
            raise UnknownModel(f"there is no model {name!r} here", hint=suggest(name, names))
        return found

    def find(self, name: str) -> Hosted:
        """The model of a name or alias, which answers now.

        Raises:
            UnknownModel: there is none.
            NotLoaded: it does not answer now.
        """
        known = self.look_up(name)
        if known.state != "loaded" or known.hosted is None:
            raise NotLoaded(known)
        return known.hosted

    def statistics(self) -> dict[str, Statistics]:
        """What each engine counts."""
        every = ((name, one.hosted) for name, one in self.known.items())
        return {name: one.runner.engine.statistics for name, one in every if one is not None}

    async def start(self) -> None:
        """Begins to serve what shall be there from the start.

        Raises:
            OpenGLMError: one cannot be served.
        """
        for one in self.known.values():
            if one.loads_at_start:
                one.hosted = await self._host(one)
                one.state = "loaded"

    async def load(self, name: str) -> Known:
        """Loads a model, unless it is there; that goes on if nobody waits for it any more.

        Raises:
            UnknownModel: there is none.
            NotLoaded: it is being unloaded.
            ServeError: there is no memory for it, or its files are not what they should be.
        """
        one = self.look_up(name)
        if one.state == "unloading":
            raise NotLoaded(one)
        if one.state == "unloaded":
            one.state, one.task = "loading", asyncio.create_task(self._load(one))
        if one.task is not None:
            await asyncio.shield(one.task)
        return one

    async def unload(self, name: str) -> Known:
        """Unloads a model once its calls have ended; from now on it takes no new ones.

        Raises:
            UnknownModel: there is none.
            NotLoaded: it is being loaded.
        """
        one = self.look_up(name)
        if one.state == "loading":
            raise NotLoaded(one)
        if one.state == "loaded":
            one.state, one.task = "unloading", asyncio.create_task(self._unload(one))
        if one.task is not None:
            await asyncio.shield(one.task)
        return one

    async def close(self) -> None:
        """Ends all engines."""
        tasks = [one.task for one in self.known.values() if one.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        every = [one.hosted for one in self.known.values() if one.hosted is not None]
        await asyncio.gather(*(hosted.runner.close() for hosted in every))

    async def _load(self, one: Known) -> None:
        try:
            async with self._one_by_one:
                await asyncio.to_thread(one.check)
                one.hosted = await self._host(one)
        except OpenGLMError as error:
            logger.error("%s could not be loaded: %s", one.name, error)
            if isinstance(error, ServeError):
                raise
            raise ServeError("internal", f"{one.name} could not be loaded: {error}") from error
        finally:
            one.state = "loaded" if one.hosted is not None else "unloaded"
            one.task = None
        logger.info("%s was loaded", one.name)

    async def _host(self, one: Known) -> Hosted:
        """Reads a model and begins to step its engine."""
        model, engine = await asyncio.to_thread(_read, one)
        return Hosted(one.name, model, EngineRunner(engine))

    async def _unload(self, one: Known) -> None:
        assert one.hosted is not None
        await one.hosted.until_idle()
        await one.hosted.runner.close()
        one.hosted = None
        await asyncio.to_thread(_return_memory)
        one.state, one.task = "unloaded", None
        logger.info("%s was unloaded", one.name)


def _read(one: Known) -> tuple[LanguageModel, Engine]:
    """A model and its engine, with their memory."""
    model = one.take()
    return model, model.engine(**one.engine)


def _return_memory() -> None:
    """Gives back what nobody refers to any more, cycles included."""
    gc.collect()
    return_freed_memory()
    torch.cuda.empty_cache()
