"""Histograms that count in place, each bucket with the trace of a request that fell into it.

OpenTelemetry's own instrument looks its attributes up for each measurement, some 5 µs; a request
makes five of them. Here a series is looked up once, and a measurement is one addition to a bucket.
What is measured, and where it is sent, is decided elsewhere.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from opentelemetry import metrics as api
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import AggregationTemporality, HistogramDataPoint, Metric
from opentelemetry.sdk.metrics.export import Histogram as HistogramData
from opentelemetry.util.types import Attributes

# From a cached health answer to the longest generation; 2 s is where an alert looks.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0),
    *(60.0, 120.0, 300.0, 600.0),
)
_BOUNDS = {"s": _SECONDS, "{token}": tuple(float(4**n) for n in range(11))}  # 1 to a million
_OTHER = (0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0)
# As in OpenTelemetry's own instruments: what comes beyond shares one series.
MOST_SERIES = 2000
BEYOND: Mapping[str, Any] = {"otel.metric.overflow": True}


class Record(Protocol):
    """Adds a measurement, of the request with this trace if it is sampled."""

    def __call__(self, value: float, trace_id: str = "") -> None: ...


class Traced(NamedTuple):
    """A measurement whose request can be looked at: trace id in hex, time in ns since 1970."""

    value: float
    trace_id: str
    at: int


class Series:
    """The measurements of one set of attributes. `bounds` are upper limits, themselves included."""

    __slots__ = (
        *("_bounds", "_counts", "_highest", "_lowest", "_since", "_sum"),
        *("attributes", "exemplars"),
    )

    def __init__(self, attributes: Mapping[str, Any], bounds: Sequence[float]) -> None:
        self.attributes = dict(attributes)
        # The latest of each bucket, by the bucket's place.
        self.exemplars: dict[int, Traced] = {}
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lowest = float("inf")
        self._highest = float("-inf")
        self._since = time.time_ns()

    def record(self, value: float, trace_id: str = "") -> None:
        """Adds a measurement; what is negative or no finite number is none."""
        if not 0.0 <= value < float("inf"):
            return
        place = bisect_left(self._bounds, value)
        self._counts[place] += 1
        if trace_id:
            self.exemplars[place] = Traced(value, trace_id, time.time_ns())
        self._sum += value
        if value < self._lowest:
            self._lowest = value
        if value > self._highest:
            self._highest = value

    def point(self) -> HistogramDataPoint:
        """What was counted so far. From another thread, a measurement may be half in it."""
        counts = tuple(self._counts)
        return HistogramDataPoint(
            attributes=self.attributes,
            start_time_unix_nano=self._since,
            time_unix_nano=time.time_ns(),
            count=sum(counts),
            sum=self._sum,
            bucket_counts=counts,
            explicit_bounds=self._bounds,
            min=self._lowest,
            max=self._highest,
            exemplars=[
                Exemplar({}, traced.value, traced.at, None, int(traced.trace_id, 16))
                for traced in tuple(self.exemplars.values())
            ],
        )

    def exemplars_by_bound(self) -> dict[float, Traced]:
        """The latest traced measurement of each bucket, by the bucket's upper bound."""
        bounds = (*self._bounds, float("inf"))
        return {bounds[place]: traced for place, traced in tuple(self.exemplars.items())}


class CountingHistogram(api.Histogram):
    """A histogram of OpenTelemetry's interface, its series also to be had by themselves."""

    def __init__(
        self, name: str, unit: str, description: str, bounds: Sequence[float] | None
    ) -> None:
        self.name, self.unit, self._description = name, unit, description
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
            if len(self._series) >= MOST_SERIES and attributes is not BEYOND:
                return self.series(BEYOND)
            found = self._series[key] = Series(attributes, self._bounds)
        return found

    def all_series(self) -> tuple[Series, ...]:
        """Every series there is. From any thread."""
        return tuple(self._series.values())

    def metric(self) -> Metric | None:
        """All series, None before there is one with a measurement."""
        points = [point for s in self.all_series() if (point := s.point()).count]
        if not points:
            return None
        data = HistogramData(points, AggregationTemporality.CUMULATIVE)
        return Metric(self.name, self._description, self.unit, data)


def recorder(histogram: api.Histogram, attributes: Mapping[str, Any]) -> Record:
    """Adds measurements to one series of a histogram, at the least cost that it offers."""
    if isinstance(histogram, CountingHistogram):
        return histogram.series(attributes).record
    return lambda value, trace_id="": histogram.record(value, attributes)
