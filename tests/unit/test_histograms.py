"""Histograms that count in place: they say what OpenTelemetry's own would say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.metrics import NoOpMeter
from opentelemetry.sdk.metrics import Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.metrics.view import ExplicitBucketHistogramAggregation, View

from services.chassis import telemetry
from services.chassis.histograms import CountingHistogram, recorder

BOUNDS = (0.5, 1.0, 2.0)


def theirs(values: list[tuple[float, str]]) -> dict[Any, tuple[Any, ...]]:
    reader = InMemoryMetricReader()
    view = View(instrument_type=Histogram, aggregation=ExplicitBucketHistogramAggregation(BOUNDS))
    histogram = MeterProvider([reader], views=[view]).get_meter("m").create_histogram("h")
    for value, model in values:
        histogram.record(value, {"model": model})
    data = reader.get_metrics_data()
    if data is None:
        return {}
    return points(data.resource_metrics[0].scope_metrics[0].metrics[0])


def points(metric: Any) -> dict[Any, tuple[Any, ...]]:
    return {
        p.attributes["model"]: (p.count, p.sum, tuple(p.bucket_counts), p.min, p.max)
        for p in metric.data.data_points
    }


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 0.75, 1.0, 2.0, 2.5, 1e9, -1.0, float("inf"), float("nan")]),
            st.sampled_from(["a", "b"]),
        )
    )
)
def test_it_counts_what_the_sdk_s_histogram_counts(values):
    mine = CountingHistogram("h", "", "", BOUNDS)
    for value, model in values:
        mine.record(value, {"model": model})
    metric = mine.metric()
    assert (points(metric) if metric else {}) == theirs(values)


def test_endless_labels_share_a_series():
    histogram = CountingHistogram("h", "s", "", None)
    for number in range(5000):
        histogram.record(1.0, {"n": number})
    metric = histogram.metric()
    assert metric is not None
    counts = {str(p.attributes): p.count for p in metric.data.data_points}
    assert len(counts) == 2001
    assert sum(counts.values()) == 5000
    assert counts["{'otel.metric.overflow': True}"] == 3000


@pytest.mark.parametrize("attributes", [{}, {"a": "b"}])
async def test_a_recorder_measures_in_the_series_of_its_attributes(attributes):
    one = telemetry.open("a", "1")
    histogram = one.meter.create_histogram("h", unit="s")
    recorder(histogram, attributes)(0.3)
    histogram.record(0.4, attributes)
    assert one.meter.create_histogram("h", unit="s") is histogram
    labels = 'a="b"' if attributes else ""
    wanted = f"h_seconds_count{{{labels}}} 2.0" if labels else "h_seconds_count 2.0"
    assert wanted in one.prometheus_text()
    await one.close()


def test_a_recorder_of_any_other_histogram_records_too():
    recorder(NoOpMeter("m").create_histogram("h"), {"a": "b"})(1.0)
