"""Counters that count in place, and gauges that remember nothing of what is gone."""

from __future__ import annotations

import logging
from collections.abc import Iterable

import pytest
from opentelemetry.metrics import CallbackOptions, NoOpMeter, Observation

from services.chassis import telemetry
from services.chassis.counters import CountingCounter, counted


def test_a_series_counts_what_its_attributes_say_and_never_falls():
    counter = CountingCounter("c", "", "")
    counter.add(2, {"m": "a"})
    counter.series({"m": "a"}).add(0.5)
    counter.add(-7, {"m": "a"})
    counted(counter, {"m": "b"})()
    metric = counter.metric()
    assert metric is not None
    assert {p.attributes["m"]: p.value for p in metric.data.data_points} == {"a": 2.5, "b": 1}
    assert metric.data.is_monotonic


def test_endless_labels_share_a_series():
    counter = CountingCounter("c", "", "")
    for number in range(5000):
        counter.add(1, {"n": number})
    metric = counter.metric()
    assert metric is not None
    counts = {str(p.attributes): p.value for p in metric.data.data_points}
    assert len(counts) == 2001
    assert sum(counts.values()) == 5000


def test_a_meter_without_series_of_its_own_counts_as_well():
    counted(NoOpMeter("m").create_counter("c"), {"a": "b"})()


async def test_a_gauge_shows_what_is_there_however_much_has_come_and_gone():
    one = telemetry.open("a", "1")
    present: list[str] = []
    one.meter.create_observable_gauge(
        "known", callbacks=[lambda _: [Observation(1, {"id": name}) for name in present]]
    )
    # More than the SDK's own gauges remember, and then put into one series.
    for number in range(2500):
        present[:] = [f"backend-{number}"]
        (metric,) = [g.metric() for g in one.meter.gauges()]
        assert metric is not None
        assert [p.attributes for p in metric.data.data_points] == [{"id": present[0]}]
    text = one.prometheus_text()
    assert [line for line in text.splitlines() if line.startswith("known{")] == [
        'known{id="backend-2499"} 1.0'
    ]
    await one.close()


async def test_a_gauge_that_cannot_be_read_costs_a_scrape_no_other(
    caplog: pytest.LogCaptureFixture,
):
    def broken(_: CallbackOptions) -> Iterable[Observation]:
        raise RuntimeError("the database is away")

    one = telemetry.open("a", "1")
    one.meter.create_observable_gauge("broken", callbacks=[broken])
    one.meter.create_observable_gauge("well", callbacks=[lambda _: [Observation(3)]])
    with caplog.at_level(logging.ERROR):
        text = one.prometheus_text()
    assert "\nwell 3.0\n" in text
    assert "\nbroken " not in text
    assert [record.message for record in caplog.records] == ["a gauge cannot be read"]
    await one.close()
