"""Replicas under Ray Serve, which starts them, watches them, replaces them and scales them.

Ray's own HTTP proxy is not used. It sends a call again only if no replica had taken it; when the
replica that writes an answer dies, it answers 500 or breaks the stream off (ray 2.60, module
`ray.serve._private.proxy`). And keys, limits and counts would be one set for each replica. So our
server stands in front, and calls replicas by their handle.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from openglm.errors import UsageError
from openglm.home import find_model
from openglm.serve.replicas.engine import RemoteModel
from openglm.serve.replicas.orders import Line, Order, Parcel, ReplicaDied
from openglm.serve.replicas.replica import Replica, Source
from openglm.tokenizers import find_tokenizer, require_tokenizer

QUIET = {"RAY_USAGE_STATS_ENABLED": "0"}
"""Ray would call home."""
LOCAL = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Without a cluster Ray listens on the loopback address, as it does on those two systems."""
MOST_AT_ONCE = 256
"""Requests of one replica; its engine lets some of them wait."""
BUSY = 16
"""Requests at once for each replica, from which on another one is started."""
HEALTH_SECONDS = 5.0
RANGE = re.compile("([0-9]{1,4})(?:-([0-9]{1,4}))?")
STORE_BYTES = 100 << 20
"""Of shared memory on this machine; nothing large is ever in it."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many replicas there are.

    Args:
        least: always.
        most: when there is much to do.
    """

    least: int = 1
    most: int = 1

    @classmethod
    def parse(cls, text: str) -> Scale:
        """From "2" or "1-4"; `UsageError` for anything else."""
        found = RANGE.fullmatch(text)
        if found is not None:
            least, most = int(found[1]), int(found[2] or found[1])
            if 1 <= least <= most:
                return cls(least, most)
        raise UsageError(
            f"replicas {text!r}: a number or a range, from 1 on", hint="such as 2, 1-4"
        )


@contextmanager
def cluster() -> Iterator[None]:
    """Ray for the time of the block: the cluster that RAY_ADDRESS names, or one of this machine.

    Raises:
        UsageError: it is not installed.
    """
    own: dict[str, Any] = {}
    environment = QUIET
    if is_local := not os.environ.get("RAY_ADDRESS"):
        own = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        environment = QUIET | LOCAL
    for name, value in environment.items():  # Ray reads them when it is imported
        os.environ.setdefault(name, value)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise UsageError(
            f"replicas need packages that are not installed: {error}",
            hint="pip install 'openglm[ray]'",
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray.init(logging_level=logging.WARNING, log_to_driver=False, **own)
    try:
        serve.start(proxy_location="Disabled")
        yield
    finally:
        if is_local:
            serve.shutdown()
        ray.shutdown()


@contextmanager
def replicated(source: Source, name: str, scale: Scale) -> Iterator[RemoteModel]:
    """A model whose replicas live as long as the block; inside of `cluster`.

    Args:
        source: what each replica loads.
        name: of the model.
        scale: how many.
    """
    from ray import serve

    folder = find_model(source.model)
    if Path(source.model).exists():  # replicas may be started elsewhere
        source = replace(source, model=str(folder.resolve()))
    tokenizer = (
        find_tokenizer(folder)
        if source.tokenizer is None
        else require_tokenizer(Path(source.tokenizer), folder)
    )
    deployment = serve.deployment(Replica).options(
        name="replica",
        max_ongoing_requests=MOST_AT_ONCE,
        autoscaling_config={
            "min_replicas": scale.least,
            "max_replicas": scale.most,
            "target_ongoing_requests": BUSY,
        },
        ray_actor_options=_share(source.device, scale),
        health_check_period_s=HEALTH_SECONDS,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    handle = serve.run(deployment.bind(source), name=name, route_prefix=None)
    try:
        about = handle.describe.remote().result()
        yield RemoteModel(name, about, tokenizer, line(handle))
    finally:
        handle.shutdown()
        serve.delete(name)


def line(handle: Any) -> Line:
    """The way to the replicas of a deployment: of two drawn by Ray, to that with fewer requests."""
    from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError

    deaths = RayActorError, NodeDiedError, WorkerCrashedError  # or it cannot be reached
    work = handle.options(method_name="work", stream=True)

    async def order(asked: Order) -> AsyncGenerator[Parcel, None]:
        parcels = work.remote(asked)
        try:
            async for parcel in parcels:
                yield parcel
        except deaths as error:
            raise ReplicaDied(str(error).splitlines()[0]) from error
        finally:
            parcels.cancel()

    return order


def _share(device: str, scale: Scale) -> dict[str, int]:
    """What each replica has of the cluster: a GPU, or its part of the processors."""
    import ray

    resources = ray.cluster_resources()
    wants_gpu = resources.get("GPU", 0) > 0 if device == "auto" else device.startswith("cuda")
    if wants_gpu:
        return {"num_cpus": 1, "num_gpus": 1}
    largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes())
    return {"num_cpus": max(1, int(min(largest, resources["CPU"] / scale.most)))}
