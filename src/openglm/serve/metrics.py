"""What an operator watches, for Prometheus: under names of our own and under those of vLLM.

For vLLM's dashboards those of its names are there that have a meaning here; others are absent.
Memory, processor time and open files have the names that Prometheus' clients give them in every
program. Times are of one process's monotonic clock, in seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from openglm.engine.engine import Statistics

PREFIXES = ("openglm_", "vllm:")
SHORT = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
LONG = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
HISTOGRAMS = {
    "time_to_first_token_seconds": ("From a call to its first token.", LONG),
    "inter_token_latency_seconds": ("From one token of a completion to the next.", SHORT),
    "e2e_request_latency_seconds": ("From a call to its end.", LONG),
}
COUNTERS = {
    "prompt_tokens": ("Tokens of prompts.", ()),
    "generation_tokens": ("Tokens that were written.", ()),
    "request_success": ("Completions by how they ended.", ("finished_reason",)),
}
GAUGES = {
    "num_requests_running": ("Requests that hold pages.", "running"),
    "num_requests_waiting": ("Requests that hold none.", "waiting"),
    "kv_cache_usage_perc": ("Share of pages that no new request could have, 0 to 1.", "usage"),
}
"""Name -> text, and which of the engine's `Statistics` it is."""
TOTALS = {
    "prefix_cache_hits": ("Tokens not read: a prompt before began so.", "num_prefix_hits"),
    "num_preemptions": ("How often a request lost its pages.", "num_preemptions"),
    "engine_steps": ("Forward calls.", "num_steps"),
    "engine_tokens": ("Tokens that were fed.", "num_tokens"),
    "spec_decode_num_draft_tokens": ("Guessed tokens that were fed.", "num_drafted"),
    "spec_decode_num_accepted_tokens": ("Of them, those that were right.", "num_accepted"),
}


class Metrics:
    """The counts of one server.

    Args:
        engines: counts of now, of each model by name.
        clock: monotonic, in seconds.
    """

    def __init__(
        self,
        engines: Callable[[], Mapping[str, Statistics]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self.histograms = {
            name: Histogram(name, text, ["model_name"], buckets=buckets, registry=None)
            for name, (text, buckets) in HISTOGRAMS.items()
        }
        self.counters = {
            name: Counter(name, text, ["model_name", *labels], registry=None)
            for name, (text, labels) in COUNTERS.items()
        }
        self.registry = CollectorRegistry()
        every = [*self.histograms.values(), *self.counters.values(), _Engines(engines)]
        self.registry.register(_Named(every))
        ProcessCollector(registry=self.registry)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def count(self, name: str, model: str, *labels: str, by: int = 1) -> None:
        """Counts."""
        self.counters[name].labels(model, *labels).inc(by)


class _Named(Collector):
    """Tells what others collect under each prefix: it is counted once."""

    def __init__(self, every: Sequence[Collector]) -> None:
        self.every = every

    def collect(self) -> Iterator[Metric]:
        found = [metric for one in self.every for metric in one.collect()]
        for prefix in PREFIXES:
            for one in found:
                named = Metric(f"{prefix}{one.name}", one.documentation, one.type, one.unit)
                named.samples = [s._replace(name=f"{prefix}{s.name}") for s in one.samples]
                yield named


class _Engines(Collector):
    """What engines count themselves, read when somebody asks."""

    def __init__(self, engines: Callable[[], Mapping[str, Statistics]]) -> None:
        self.engines = engines

    def collect(self) -> Iterator[Metric]:
        every = self.engines()
        for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, TOTALS)):
            for name, (text, field) in table.items():
                family = kind(name, text, labels=["model_name"])
                for model, statistics in every.items():
                    family.add_metric([model], getattr(statistics, field))
                yield family


class Stopwatch:
    """Times one call, and counts its tokens.

    Args:
        metrics: that are told.
        model: name of the model.
        begun: when the call came, by the clock of the metrics.
    """

    def __init__(self, metrics: Metrics, model: str, begun: float) -> None:
        self.metrics = metrics
        self.model = model
        self.begun = begun
        self.last: dict[int, float] = {}  # completion -> when its last token came
        self._waits = self._histogram("inter_token_latency_seconds")

    def token(self, index: int) -> None:
        """A token of completion `index`."""
        now = self.metrics.clock()
        if index in self.last:
            self._waits.observe(now - self.last[index])
        elif not self.last:
            self._histogram("time_to_first_token_seconds").observe(now - self.begun)
        self.last[index] = now

    def finished(self, reason: str) -> None:
        """The end of a completion."""
        self.metrics.count("request_success", self.model, reason)

    def close(self, prompt_tokens: int, completion_tokens: int) -> None:
        """The end of the call."""
        took = self.metrics.clock() - self.begun
        self._histogram("e2e_request_latency_seconds").observe(took)
        self.metrics.count("prompt_tokens", self.model, by=prompt_tokens)
        self.metrics.count("generation_tokens", self.model, by=completion_tokens)

    def _histogram(self, name: str) -> Histogram:
        """That of this model."""
        return self.metrics.histograms[name].labels(self.model)
