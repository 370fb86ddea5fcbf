"""Counters and gauges in which a series is looked up once, or made anew at each scrape.

The SDK's own counter looks its attributes up for each addition; its gauge remembers every set of
attributes it ever had, and stops at 2000, which a router whose backends come and go reaches. What
is counted is decided elsewhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from opentelemetry import metrics as api
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    Gauge,
    Metric,
    NumberDataPoint,
    Sum,
)
from opentelemetry.util.types import Attributes

from services.chassis.histograms import BEYOND, MOST_SERIES

_log = logging.getLogger(__name__)

Callback = Callable[[CallbackOptions], Iterable[Observation]]


class Count:
    """The count of one set of attributes."""

    __slots__ = ("attributes", "since", "value")

    def __init__(self, attributes: Mapping[str, Any]) -> None:
        self.attributes = dict(attributes)
        self.since = time.time_ns()
        self.value: int | float = 0

    def add(self, amount: int | float = 1) -> None:
        """Adds to the count, which never falls."""
        if amount > 0:
            self.value += amount


class CountingCounter(api.Counter):
    """A counter of OpenTelemetry's interface, its series also to be had by themselves."""

    def __init__(self, name: str, unit: str, description: str) -> None:
        self.name, self._unit, self._description = name, unit, description
        self._series: dict[frozenset[tuple[str, Any]], Count] = {}

    def add(self, amount: int | float, attributes: Attributes = None, context: Any = None) -> None:
        """Adds to the series of these attributes."""
        self.series(attributes or {}).add(amount)

    def series(self, attributes: Mapping[str, Any]) -> Count:
        """The series of these attributes, whose values are hashable."""
        key = frozenset(attributes.items())
        found = self._series.get(key)
        if found is None:
            if len(self._series) >= MOST_SERIES and attributes is not BEYOND:
                return self.series(BEYOND)
            found = self._series[key] = Count(attributes)
        return found

    def metric(self) -> Metric | None:
        """All series, None before there is one."""
        now = time.time_ns()
        points = [
            NumberDataPoint(count.attributes, count.since, now, count.value)
            for count in tuple(self._series.values())
        ]
        if not points:
            return None
        data = Sum(points, AggregationTemporality.CUMULATIVE, is_monotonic=True)
        return Metric(self.name, self._description, self._unit, data)


class ReadGauge(api.ObservableGauge):
    """A gauge that has the series which its callbacks name at a scrape, and remembers none."""

    def __init__(
        self, name: str, callbacks: Sequence[Callback] | None, unit: str, description: str
    ) -> None:
        self.name, self._unit, self._description = name, unit, description
        self._callbacks = list(callbacks or ())

    def metric(self) -> Metric | None:
        """What is seen now; None for nothing. A callback that raises is logged and left out."""
        now, points = time.time_ns(), []
        for callback in self._callbacks:
            try:
                seen = list(callback(CallbackOptions()))
            except Exception:  # noqa: BLE001 - one gauge must not cost a scrape all others
                _log.exception("a gauge cannot be read", extra={"metric": self.name})
                continue
            points += [NumberDataPoint(one.attributes or {}, 0, now, one.value) for one in seen]
        return Metric(self.name, self._description, self._unit, Gauge(points)) if points else None


def counted(counter: api.Counter, attributes: Mapping[str, Any]) -> Callable[[], None]:
    """Adds one to one series of a counter, at the least cost that it offers."""
    if isinstance(counter, CountingCounter):
        return counter.series(attributes).add
    return lambda: counter.add(1, attributes)
