"""Models of a server whose replicas do the work."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from openglm.serve.known import Known
from openglm.serve.model_table import ModelTable
from openglm.serve.replicas.cluster import Scale, replicated
from openglm.serve.replicas.replica import Source


@contextmanager
def replicated_models(models: Sequence[ModelTable], scale: Scale) -> Iterator[dict[str, Known]]:
    """Models by name, whose replicas live as long as the block; inside of `cluster`.

    Args:
        models: that are served, all from the start.
        scale: how many replicas each has.
    """
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
