"""What the lane counts for vLLM is what vLLM would have counted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram

from services.local_engine.on_vllm.lane import gap_counter

_BOUNDS = (0.01, 0.025, 0.05, 1.0)
gaps = st.one_of(st.floats(0, 3), st.sampled_from([0.0, *_BOUNDS]))


def histogram() -> Histogram:
    made = Histogram("gap", "", ["engine"], buckets=_BOUNDS, registry=CollectorRegistry())
    child: Histogram = made.labels(engine="0")
    return child


def llm_with(*histograms: Any) -> Any:
    """As far as it is looked at: its loggers, one of which has the histogram of each engine."""
    loggers = [
        SimpleNamespace(),
        SimpleNamespace(histogram_inter_token_latency=dict(enumerate(histograms))),
    ]
    return SimpleNamespace(logger_manager=SimpleNamespace(stat_loggers=loggers))


def read(found: Histogram) -> tuple[list[float], float]:
    return [bucket.get() for bucket in found._buckets], found._sum.get()


@given(st.lists(st.tuples(gaps, st.integers(1, 600)), max_size=6))
def test_equal_gaps_counted_at_once_are_as_if_each_had_been(counted):
    together, each = histogram(), histogram()
    count = gap_counter(llm_with(together))
    assert count is not None
    for gap, times in counted:
        count(gap, times)
        for _ in range(times):
            each.observe(gap)
    assert read(together)[0] == read(each)[0]
    assert read(together)[1] == pytest.approx(read(each)[1])


@pytest.mark.parametrize(
    "llm",
    [
        SimpleNamespace(),
        SimpleNamespace(logger_manager=None),
        llm_with(),
        llm_with(SimpleNamespace(observe=print)),
        llm_with(histogram(), histogram()),  # which engine's it is, outputs do not say
    ],
)
def test_a_histogram_unlike_those_known_is_left_to_vllm(llm):
    assert gap_counter(llm) is None
