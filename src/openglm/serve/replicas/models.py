"""Models of a server whose replicas do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from openglm.errors import ConfigError
from openglm.serve.known import Known
from openglm.serve.model_table import ModelTable
from openglm.serve.replicas.cluster import Scale, replicated
from openglm.serve.replicas.replica import Source


def replicated_models(
    models: Sequence[ModelTable], scale: Scale
) -> AbstractContextManager[dict[str, Known]]:
    """Models by name, whose replicas live as long as the block; to be entered inside of `cluster`.

    Args:
        models: that are served, all from the start.
        scale: how many replicas each has.

    Raises:
        ConfigError: one of them is to be loaded later.
    """
    for model in models:
        if not model.load:
            raise ConfigError(
                f"{model.served_name} has load = false; with --ray all models are there at once",
                hint="take it out of the file, write load = true, or serve without --ray",
            )
    return _replicated(models, scale)


@contextmanager
def _replicated(models: Sequence[ModelTable], scale: Scale) -> Iterator[dict[str, Known]]:
    with ExitStack() as stack:
        yield {model.served_name: _known(model, scale, stack) for model in models}


def _known(model: ModelTable, scale: Scale, stack: ExitStack) -> Known:
    name, engine = model.served_name, model.known().engine
    source = Source(
        model=model.source,
        dtype=model.dtype,
        device=model.device,
        tokenizer=model.tokenizer,
        engine=engine,
    )
    remote = stack.enter_context(replicated(source, name, scale))
    return Known(name=name, read=lambda: remote, engine=engine)
