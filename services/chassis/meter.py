"""A meter whose instruments count in place, and the readers that fetch what they have counted.

Histograms, counters and gauges are this project's own (histograms.py, counters.py); observable
counters and those that may fall are the SDK's. What is measured is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    MetricExporter,
    MetricsData,
    PeriodicExportingMetricReader,
    ScopeMetrics,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from services.chassis.counters import CountingCounter, ReadGauge
from services.chassis.histograms import CountingHistogram, Traced

_NO_NAME = re.compile(r"[^a-zA-Z0-9_]")
_UNITS = {"s": "seconds", "By": "bytes"}


class CountingMeter(api.Meter):
    """The meter of one service instance; what does not count in place is of `inner`."""

    def __init__(self, inner: api.Meter, name: str, version: str) -> None:
        super().__init__(name, version)
        self._inner = inner
        self._scope = InstrumentationScope(name, version)
        self._histograms: dict[str, CountingHistogram] = {}
        self._counters: dict[str, CountingCounter] = {}
        self._gauges: list[ReadGauge] = []
        # The SDK hands nothing to a reader while it has nothing of its own; so it always has this.
        inner.create_observable_gauge(
            "anabranch.telemetry.histograms",
            callbacks=[lambda _: [api.Observation(len(self._histograms))]],
            description="Histograms of this process",
        )

    def create_histogram(
        self,
        name: str,
        unit: str = "",
        description: str = "",
        *,
        explicit_bucket_boundaries_advisory: Sequence[float] | None = None,
    ) -> CountingHistogram:
        """The histogram of this name. Units `s` and `{token}` have boundaries of their own."""
        found = self._histograms.get(name)
        if found is None:
            bounds = explicit_bucket_boundaries_advisory
            found = self._histograms[name] = CountingHistogram(name, unit, description, bounds)
        return found

    def create_counter(self, name: str, unit: str = "", description: str = "") -> CountingCounter:
        """The counter of this name."""
        found = self._counters.get(name)
        if found is None:
            found = self._counters[name] = CountingCounter(name, unit, description)
        return found

    def create_observable_gauge(
        self,
        name: str,
        callbacks: Sequence[Any] | None = None,
        unit: str = "",
        description: str = "",
    ) -> ReadGauge:
        """A gauge whose callbacks are called at each scrape, in another thread than the loop's."""
        gauge = ReadGauge(name, callbacks, unit, description)
        self._gauges.append(gauge)
        return gauge

    def histograms(self) -> tuple[CountingHistogram, ...]:
        """Every histogram. From any thread."""
        return tuple(self._histograms.values())

    def gauges(self) -> tuple[ReadGauge, ...]:
        """Every gauge that is read at a scrape. From any thread."""
        return tuple(self._gauges)

    def added_to(self, data: MetricsData) -> MetricsData:
        """What a reader has collected, with what is counted here."""
        mine: list[CountingHistogram | CountingCounter | ReadGauge] = [*self.histograms()]
        mine += list(self._counters.values())
        mine += self.gauges()
        counted = [metric for one in mine if (metric := one.metric())]
        if not counted or not data.resource_metrics:
            return data
        resource, *others = data.resource_metrics
        # One entry for each scope: an exporter may keep only the last of several.
        scopes = {entry.scope: entry for entry in resource.scope_metrics}
        present = scopes.get(self._scope) or ScopeMetrics(self._scope, [], "")
        scopes[self._scope] = replace(present, metrics=[*present.metrics, *counted])
        resource = replace(resource, scope_metrics=list(scopes.values()))
        return replace(data, resource_metrics=[resource, *others])

    def create_up_down_counter(self, *args: Any, **kwargs: Any) -> api.UpDownCounter:
        return self._inner.create_up_down_counter(*args, **kwargs)

    def create_observable_counter(self, *args: Any, **kwargs: Any) -> api.ObservableCounter:
        return self._inner.create_observable_counter(*args, **kwargs)

    def create_observable_up_down_counter(
        self, *args: Any, **kwargs: Any
    ) -> api.ObservableUpDownCounter:
        return self._inner.create_observable_up_down_counter(*args, **kwargs)


Added = Callable[[MetricsData], MetricsData]
Histograms = Callable[[], Sequence[CountingHistogram]]


class ScrapedReader(PrometheusMetricReader):
    """For Prometheus: what the SDK has collected, and what `added` puts to it.

    The exporter leaves exemplars out; they are put to the buckets again from `histograms`. The
    text format 0.0.4 has no place for them, so they show in OpenMetrics alone.
    """

    def __init__(self, added: Added, histograms: Histograms, registry: CollectorRegistry) -> None:
        super().__init__(registry=registry, scope_info_enabled=False)
        self._added = added
        registry.unregister(self._collector)
        self._shown_in = registry
        self._shown = _WithExemplars(self._collector, histograms)
        registry.register(self._shown)

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Ends it; nothing of it is in the registry any more."""
        self._shown_in.unregister(self._shown)

    def _receive_metrics(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        super()._receive_metrics(self._added(metrics_data), *args, **kwargs)


class _WithExemplars(Collector):
    """What another collector has, with the exemplars of histograms."""

    def __init__(self, inner: Any, histograms: Histograms) -> None:
        self._inner = inner
        self._histograms = histograms

    def collect(self) -> Iterator[Family]:
        """Every family, buckets with their exemplars."""
        known = {_prometheus_name(h): h for h in self._histograms()}
        for family in self._inner.collect():
            histogram = known.get(family.name)
            if family.type == "histogram" and histogram is not None:
                _put_exemplars(family, histogram)
            yield family


def _prometheus_name(histogram: CountingHistogram) -> str:
    name, unit = _NO_NAME.sub("_", histogram.name), _UNITS.get(histogram.unit, "")
    return f"{name}_{unit}" if unit and not name.endswith(f"_{unit}") else name


def _put_exemplars(family: Family, histogram: CountingHistogram) -> None:
    traced: dict[frozenset[tuple[str, str]], dict[float, Traced]] = {
        frozenset((_NO_NAME.sub("_", key), str(value)) for key, value in s.attributes.items()): (
            s.exemplars_by_bound()
        )
        for s in histogram.all_series()
        if s.exemplars
    }
    if not traced:
        return
    for place, sample in enumerate(family.samples):
        if not sample.name.endswith("_bucket"):
            continue
        # A series without one of the family's labels has it empty.
        labels = frozenset((k, v) for k, v in sample.labels.items() if k != "le" and v)
        found = traced.get(labels, {}).get(float(sample.labels["le"]))
        if found is not None:
            exemplar = Exemplar({"trace_id": found.trace_id}, found.value, found.at / 1e9)
            family.samples[place] = sample._replace(exemplar=exemplar)


class PushedReader(PeriodicExportingMetricReader):
    """For a collector: what the SDK has and what `added` puts to it, every `every` seconds."""

    def __init__(
        self, added: Added, exporter: MetricExporter, *, every: float, timeout: float
    ) -> None:
        self._added = added
        super().__init__(
            exporter, export_interval_millis=every * 1000, export_timeout_millis=timeout * 1000
        )

    def _receive_metrics(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        super()._receive_metrics(self._added(metrics_data), *args, **kwargs)
