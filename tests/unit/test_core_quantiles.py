"""A high quantile of recent measurements."""

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.quantiles import RecentQuantile

NOW = 1000.0


def filled(values, **how) -> RecentQuantile:
    quantile = RecentQuantile(default=1.0, **how)
    for value in values:
        quantile.add(value, NOW)
    return quantile


def test_before_any_sample_the_default_counts():
    assert RecentQuantile(default=1.5).value(NOW) == 1.5


def test_of_a_hundred_samples_it_is_the_ninety_fifth():
    assert filled(range(1, 101)).value(NOW) == 95


def test_one_bad_sample_is_not_believed_and_two_are():
    assert filled([9.0]).value(NOW) == 1.0
    assert filled([9.0, 8.0]).value(NOW) == 8.0


def test_a_few_good_samples_do_not_undo_the_default():
    assert filled([0.2] * 5).value(NOW) == 1.0
    assert filled([0.2] * 20).value(NOW) == 0.2


def test_old_samples_are_forgotten():
    quantile = filled([9.0] * 50, window=60.0)
    assert quantile.value(NOW + 60) == 9.0
    assert quantile.value(NOW + 61) == 1.0
    assert len(quantile) == 0


def test_memory_is_bounded_and_the_newest_stay():
    quantile = filled(range(10_000), most=100)
    assert len(quantile) == 100
    assert quantile.value(NOW) == 9994


@given(
    st.lists(st.tuples(st.floats(0, 100), st.floats(0, 30)), max_size=120),
    st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    st.integers(1, 30),
)
def test_it_is_the_exact_quantile_of_what_is_remembered(samples, share, fewest):
    quantile = RecentQuantile(default=50.0, share=share, window=100.0, most=40, fewest=fewest)
    now, kept = NOW, []
    for value, gap in samples:
        now += gap
        quantile.add(value, now)
        kept = [*kept, (now, value)][-40:]
        known = [v for at, v in kept if at >= now - 100.0]
        padded = sorted(known + [50.0] * (fewest - len(known)))
        assert quantile.value(now) == padded[max(ceil(share * len(padded) - 1e-9), 1) - 1]
    assert len(quantile) <= 40


@pytest.mark.parametrize("value", [0.0, 1e9])
def test_samples_that_are_all_alike_are_that_quantile(value):
    assert filled([value] * 300).value(NOW) == value
