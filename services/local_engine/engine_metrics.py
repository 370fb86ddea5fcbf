"""Times and counts of requests, by OpenTelemetry's conventions for generative AI.

vLLM's own metrics are passed on beside these, unrenamed.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Collection, Iterable, Iterator

import prometheus_client
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from services.chassis.errors import Fault
from services.chassis.histograms import recorder
from services.local_engine.engine import OUT_OF_MEMORY, EngineLoad


class EngineMetrics:
    """The instruments; `request` starts the measurement of one request."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.duration = meter.create_histogram(
            "gen_ai.server.request.duration", unit="s", description="From arrival to the last token"
        )
        self.first_token = meter.create_histogram(
            "gen_ai.server.time_to_first_token",
            unit="s",
            description="From arrival to the first token",
        )
        self.per_token = meter.create_histogram(
            "gen_ai.server.time_per_output_token",
            unit="s",
            description="Mean time between tokens after the first",
        )
        self.usage = meter.create_histogram(
            "gen_ai.client.token.usage", unit="{token}", description="Tokens of finished requests"
        )

        self.out_of_memory = meter.create_counter(
            "anabranch.engine.out_of_memory",
            unit="{request}",
            description="Requests failed because a step ran out of memory",
        )

    def request(self, model: str, trace_id: str = "", operation: str = "chat") -> RequestTimes:
        """A request has arrived; `trace_id` is that of its trace, if it is sampled."""
        return RequestTimes(self, model, trace_id, operation)


def observe_load(meter: Meter, load: Callable[[], EngineLoad]) -> None:
    """Creates the gauges of an engine's load; none has a value before the model is loaded.

    `load` is called at each scrape, in another thread than the loop's.
    """

    def each(read: Callable[[EngineLoad], float]) -> Callable[..., Iterable[Observation]]:
        def callback(_: CallbackOptions) -> Iterable[Observation]:
            try:
                return [Observation(read(load()))]
            except Fault:
                return []

        return callback

    reads: tuple[tuple[str, str, Callable[[EngineLoad], float]], ...] = (
        ("running", "Sequences that the engine computes now", lambda now: now.running),
        ("waiting", "Sequences that wait in the engine", lambda now: now.waiting),
        ("kv_used_tokens", "Tokens in the KV cache", lambda now: now.kv_used_tokens),
        ("kv_total_tokens", "Tokens that fit the KV cache", lambda now: now.kv_total_tokens),
        ("max_running", "The most sequences at a time", lambda now: now.max_running),
        (
            "output_tokens_per_second",
            "Tokens of the last second",
            lambda now: now.output_tokens_per_second,
        ),
        (
            "step_time_ratio",
            "Time of steps over what they should take, smoothed",
            lambda now: now.step_time_ratio,
        ),
    )
    for name, description, read in reads:
        meter.create_observable_gauge(
            f"anabranch.engine.{name}", callbacks=[each(read)], description=description
        )


class RequestTimes:
    """The times of one request."""

    __slots__ = ("_arrived", "_attributes", "_count", "_first", "_metrics", "_trace_id")

    def __init__(self, metrics: EngineMetrics, model: str, trace_id: str, operation: str) -> None:
        self._metrics = metrics
        self._trace_id = trace_id
        self._attributes = {"gen_ai.request.model": model, "gen_ai.operation.name": operation}
        self._arrived = metrics.clock()
        self._first: float | None = None
        self._count = 0

    def tokens(self, count: int) -> None:
        """That many tokens have left."""
        self._count += count
        if self._first is None and count:
            self._first = self._metrics.clock()
            record = recorder(self._metrics.first_token, self._attributes)
            record(self._first - self._arrived, self._trace_id)

    def failed(self, fault: Fault) -> None:
        """The request has failed: counts what has a counter of its own, and ends."""
        if fault.metadata.get("cause") == OUT_OF_MEMORY:
            self._metrics.out_of_memory.add(1)
        self.end("error", 0, 0)

    def end(self, outcome: str, prompt_tokens: int, completion_tokens: int) -> None:
        """The request is over: ok, cancelled or error."""
        metrics, attributes = self._metrics, self._attributes
        now = metrics.clock()
        if outcome != "ok":
            attributes = attributes | {"error.type": outcome}
        metrics.duration.record(now - self._arrived, attributes)
        if self._first is not None and self._count > 1:
            metrics.per_token.record((now - self._first) / (self._count - 1), self._attributes)
        for kind, count in (("input", prompt_tokens), ("output", completion_tokens)):
            if count:
                metrics.usage.record(count, self._attributes | {"gen_ai.token.type": kind})


class VllmCollector(Collector):
    """Passes on the metrics that vLLM keeps in prometheus_client's default registry.

    It keeps those of a model that is gone; `served` names the models that are there.
    """

    def __init__(self, served: Callable[[], Collection[str]]) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        """Every metric whose name begins with "vllm:", of models that are served."""
        served = self._served()
        for metric in prometheus_client.REGISTRY.collect():
            if metric.name.startswith("vllm:"):
                kept = copy.copy(metric)
                kept.samples = [
                    sample
                    for sample in metric.samples
                    if sample.labels.get("model_name", "") in ("", *served)
                ]
                if kept.samples:
                    yield kept
