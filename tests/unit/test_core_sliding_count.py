"""Counting the events of the last seconds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.sliding_count import BUCKETS, SlidingCount


def test_an_event_is_forgotten_after_the_window():
    count = SlidingCount(10.0)
    count.add(100.5)
    assert count.total(109.5) == 1
    assert count.total(110.5) == 0


def test_a_long_silence_forgets_everything():
    count = SlidingCount(10.0)
    for second in range(10):
        count.add(100.0 + second)
    assert count.total(1e6) == 0


def test_a_clock_that_steps_back_loses_nothing():
    count = SlidingCount(10.0)
    count.add(100.0)
    count.add(95.0)
    assert count.total(100.0) == 2


def test_clearing_forgets():
    count = SlidingCount(1.0)
    count.add(0.0)
    count.clear()
    assert count.total(0.0) == 0


@pytest.mark.parametrize("window", [0.0, -1.0, float("nan")])
def test_a_window_has_a_length(window):
    with pytest.raises(ValueError, match="counts nothing"):
        SlidingCount(window)


@given(
    st.lists(st.floats(0.0, 5.0), max_size=60),
    st.sampled_from([0.5, 1.0, 10.0, 60.0]),
    st.floats(0.0, 1e6),
)
def test_it_counts_between_nine_tenths_of_the_window_and_all_of_it(gaps, window, start):
    count, now, events = SlidingCount(window), start, []
    for gap in gaps:
        now += gap
        count.add(now)
        events.append(now)
        counted = count.total(now)
        least = sum(now - event < window * (1 - 1 / BUCKETS) - 1e-6 for event in events)
        most = sum(now - event <= window + 1e-6 for event in events)
        assert least <= counted <= most
