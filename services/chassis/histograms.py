"""Histograms that count in place, and hand OpenTelemetry's readers what they have counted.

OpenTelemetry's own instrument looks its attributes up for each measurement, some 5 µs; a request
makes five of them. Here a series is looked up once, and a measurement is one addition to a bucket.
What is measured, and where it is sent, is decided elsewhere.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricsData,
    PeriodicExportingMetricReader,
    ScopeMetrics,
)
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.util.types import Attributes
from prometheus_client import CollectorRegistry

# From a cached health answer to the longest generation; 2 s is where an alert looks.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0),
)
_BOUNDS = {"s": _SECONDS, "{token}": tuple(float(4**n) for n in range(11))}  # 1 to a million
_OTHER = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0)
# As in OpenTelemetry's own instruments: what comes beyond shares one series.
_MOST_SERIES = 2000
_BEYOND: Mapping[str, Any] = {"otel.metric.overflow": True}


class Series:
    """The measurements of one set of attributes. `bounds` are upper limits, themselves included."""

    __slots__ = ("_attributes", "_bounds", "_counts", "_highest", "_lowest", "_since", "_sum")

    def __init__(self, attributes: Mapping[str, Any], bounds: Sequence[float]) -> None:
        self._attributes = dict(attributes)
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lowest = float("inf")
        self._highest = float("-inf")
        self._since = time.time_ns()

    def record(self, value: float) -> None:
        """Adds a measurement; what is negative or no finite number is none."""
        if not 0.0 <= value < float("inf"):
            return
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value
        if value < self._lowest:
            self._lowest = value
        if value > self._highest:
            self._highest = value

    def point(self) -> HistogramDataPoint:
        """What was counted so far. From another thread, a measurement may be half in it."""
        counts = tuple(self._counts)
        return HistogramDataPoint(
            attributes=self._attributes,
            start_time_unix_nano=self._since,
            time_unix_nano=time.time_ns(),
            count=sum(counts),
            sum=self._sum,
            bucket_counts=counts,
            explicit_bounds=self._bounds,
            min=self._lowest,
            max=self._highest,
        )


class CountingHistogram(api.Histogram):
    """A histogram of OpenTelemetry's interface, its series also to be had by themselves."""

    def __init__(
        self, name: str, unit: str, description: str, bounds: Sequence[float] | None
    ) -> None:
        self.name, self._unit, self._description = name, unit, description
        self._bounds = _BOUNDS.get(unit) or tuple(bounds or _OTHER)
        self._series: dict[frozenset[tuple[str, Any]], Series] = {}

    def record(self, amount: float, attributes: Attributes = None, context: Any = None) -> None:
        """Adds a measurement."""
        self.series(attributes or {}).record(amount)

    def series(self, attributes: Mapping[str, Any]) -> Series:
        """The series of these attributes, whose values are hashable."""
        key = frozenset(attributes.items())
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= _MOST_SERIES and attributes is not _BEYOND:
                return self.series(_BEYOND)
            found = self._series[key] = Series(attributes, self._bounds)
        return found

    def metric(self) -> Metric | None:
        """All series, None before there is one with a measurement."""
        points = [point for s in tuple(self._series.values()) if (point := s.point()).count]
        if not points:
            return None
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return Metric(self.name, self._description, self._unit, data)


def recorder(histogram: api.Histogram, attributes: Mapping[str, Any]) -> Callable[[float], None]:
    """Adds measurements to one series of a histogram, at the least cost that it offers."""
    if isinstance(histogram, CountingHistogram):
        return histogram.series(attributes).record
    return lambda amount: histogram.record(amount, attributes)


class CountingMeter(api.Meter):
    """A meter whose histograms count in place; its other instruments are those of `inner`."""

    def __init__(self, inner: api.Meter, name: str, version: str) -> None:
        super().__init__(name, version)
        self._inner = inner
        self._scope = InstrumentationScope(name, version)
        self._histograms: dict[str, CountingHistogram] = {}
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

    def added_to(self, data: MetricsData) -> MetricsData:
        """What a reader has collected, with the histograms."""
        counted = [m for h in tuple(self._histograms.values()) if (m := h.metric())]
        if not counted or not data.resource_metrics:
            return data
        resource, *others = data.resource_metrics
        # One entry for each scope: an exporter may keep only the last of several.
        scopes = {entry.scope: entry for entry in resource.scope_metrics}
        mine = scopes.get(self._scope) or ScopeMetrics(self._scope, [], "")
        scopes[self._scope] = replace(mine, metrics=[*mine.metrics, *counted])
        resource = replace(resource, scope_metrics=list(scopes.values()))
        return replace(data, resource_metrics=[resource, *others])

    def create_counter(self, *args: Any, **kwargs: Any) -> api.Counter:
        return self._inner.create_counter(*args, **kwargs)

    def create_up_down_counter(self, *args: Any, **kwargs: Any) -> api.UpDownCounter:
        return self._inner.create_up_down_counter(*args, **kwargs)

    def create_observable_counter(self, *args: Any, **kwargs: Any) -> api.ObservableCounter:
        return self._inner.create_observable_counter(*args, **kwargs)

    def create_observable_up_down_counter(
        self, *args: Any, **kwargs: Any
    ) -> api.ObservableUpDownCounter:
        return self._inner.create_observable_up_down_counter(*args, **kwargs)

    def create_observable_gauge(self, *args: Any, **kwargs: Any) -> api.ObservableGauge:
        return self._inner.create_observable_gauge(*args, **kwargs)


Added = Callable[[MetricsData], MetricsData]


class ScrapedReader(PrometheusMetricReader):
    """For Prometheus: what the SDK has collected, and what `added` puts to it."""

    def __init__(self, added: Added, registry: CollectorRegistry) -> None:
        super().__init__(registry=registry, scope_info_enabled=False)
        self._added = added

    def _receive_metrics(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        super()._receive_metrics(self._added(metrics_data), *args, **kwargs)


class PushedReader(PeriodicExportingMetricReader):
    """For a collector: the same, every `every` seconds."""

    def __init__(
        self, added: Added, exporter: MetricExporter, *, every: float, timeout: float
    ) -> None:
        self._added = added
        super().__init__(
            exporter, export_interval_millis=every * 1000, export_timeout_millis=timeout * 1000
        )

    def _receive_metrics(self, metrics_data: MetricsData, *args: Any, **kwargs: Any) -> None:
        super()._receive_metrics(self._added(metrics_data), *args, **kwargs)
