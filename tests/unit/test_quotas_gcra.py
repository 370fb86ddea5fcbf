"""Buckets let their burst and their rate through and nothing more, and say when there is room."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.chassis.quotas import gcra
from services.chassis.quotas.gcra import LONGEST, PER_SECOND, Buckets, Charge

START = 1_800_000_000 * PER_SECOND


class Rate(NamedTuple):
    """A bucket's."""

    limit: int
    period: int
    burst: int

    def charge(self, amount: int, key: str = "k", shares: int = 1) -> Charge:
        return Charge(
            key,
            gcra.increment(amount, self.limit, self.period, shares),
            gcra.tolerance(self.burst, self.limit, self.period),
        )

    def most_in(self, microseconds: int) -> float:
        """What a window of this length may let through."""
        return self.burst + self.limit * microseconds / (self.period * PER_SECOND)


rates = st.builds(
    Rate,
    st.integers(1, 10**9),
    st.sampled_from([1, 60, 3600, 86_400, 30 * 86_400]),
    st.integers(1, 10**6),
)


def test_a_full_bucket_lets_its_burst_through_and_then_its_rate():
    rate, buckets = Rate(60, 60, 3), Buckets()
    waits = [buckets.take([rate.charge(1)], START) for _ in range(4)]
    assert waits == [(0,), (0,), (0,), (PER_SECOND,)]
    assert buckets.take([rate.charge(1)], START + PER_SECOND) == (0,)
    assert buckets.take([rate.charge(1)], START + PER_SECOND) == (PER_SECOND,)


@given(rates, st.data())
def test_no_window_lets_more_than_burst_and_rate_through(rate: Rate, data: st.DataObject):
    buckets, now = Buckets(), START
    admitted: list[tuple[int, int]] = []
    span = max(rate.burst * rate.period * PER_SECOND // rate.limit, 1)
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.one_of(st.just(0), st.integers(0, 10), st.integers(0, 2 * span)))
        amount = data.draw(st.integers(1, rate.burst))
        if buckets.take([rate.charge(amount)], now) == (0,):
            admitted.append((now, amount))
    for first, (begins, _) in enumerate(admitted):
        total = 0
        for ends, amount in admitted[first:]:
            total += amount
            assert total <= rate.most_in(ends - begins) * (1 + 1e-12)


@given(rates, st.data())
def test_what_is_refused_is_admitted_after_the_wait_and_not_before(rate: Rate, data: st.DataObject):
    buckets, now = Buckets(), START
    amounts = st.integers(1, 2 * rate.burst)
    while buckets.take([rate.charge(data.draw(amounts))], now) == (0,):
        pass
    refused = rate.charge(data.draw(st.integers(1, rate.burst)))
    (wait,) = buckets.take([refused], now)
    if wait:
        assert buckets.take([refused], now + wait - 1) == (1,)
        assert buckets.take([refused], now + wait) == (0,)


def test_of_several_buckets_all_are_charged_or_none():
    wide, narrow = Rate(60, 60, 10), Rate(60, 60, 1)
    buckets = Buckets()
    charges = [wide.charge(1, "wide"), narrow.charge(1, "narrow")]
    assert buckets.take(charges, START) == (0, 0)
    assert buckets.take(charges, START) == (0, PER_SECOND)
    assert buckets.ahead("wide", START) == PER_SECOND


@given(rates, st.data())
def test_what_was_not_used_is_there_again(rate: Rate, data: st.DataObject):
    buckets = Buckets()
    reserved = data.draw(st.integers(1, rate.burst))
    used = data.draw(st.integers(0, reserved))
    other = Buckets()
    other.take([rate.charge(used)], START)
    buckets.take([rate.charge(reserved)], START)
    change = rate.charge(used).increment - rate.charge(reserved).increment
    buckets.settle([("k", change)], START)
    assert buckets.ahead("k", START) == other.ahead("k", START)


def test_what_was_used_beyond_is_debt_that_the_next_ones_wait_for():
    rate, buckets = Rate(60, 60, 10), Buckets()
    assert buckets.take([rate.charge(10)], START) == (0,)
    buckets.settle([("k", rate.charge(50).increment)], START)
    assert buckets.take([rate.charge(1)], START) == (51 * PER_SECOND,)


def test_a_full_bucket_cannot_be_filled_beyond_its_burst():
    rate, buckets = Rate(60, 60, 3), Buckets()
    buckets.take([rate.charge(3)], START)
    later = START + 3600 * PER_SECOND
    buckets.settle([("k", -rate.charge(3).increment)], later)
    assert buckets.take([rate.charge(3)], later) == (0,)
    assert buckets.take([rate.charge(1)], later) == (PER_SECOND,)


def test_more_than_a_burst_passes_a_full_bucket_and_is_owed():
    rate, buckets = Rate(60, 60, 3), Buckets()
    assert buckets.take([rate.charge(5)], START) == (0,)
    assert buckets.take([rate.charge(5)], START) == (5 * PER_SECOND,)
    assert buckets.take([rate.charge(5)], START + 5 * PER_SECOND) == (0,)


def test_parts_of_a_quota_together_let_no_more_than_its_rate_through():
    rate, parts = Rate(60, 60, 1), [Buckets() for _ in range(4)]
    admitted = 0
    for second in range(600):
        now = START + second * PER_SECOND
        for buckets in parts:
            admitted += buckets.take([rate.charge(1, shares=4)], now) == (0,)
    assert 600 <= admitted <= 604


def test_no_more_buckets_are_kept_than_allowed_and_full_ones_go_first():
    rate, buckets = Rate(60, 60, 100), Buckets(most=10)
    buckets.take([rate.charge(90, "busy")], START)
    later = START + 10 * PER_SECOND
    for number in range(1000):
        buckets.take([rate.charge(1, f"idle-{number}")], later + number * PER_SECOND // 100)
    assert len(buckets) == 10
    assert buckets.ahead("busy", later) == 80 * PER_SECOND


def test_a_bucket_that_was_moved_back_is_forgotten_in_its_turn():
    rate, buckets = Rate(60, 60, 100), Buckets(most=2)
    buckets.take([rate.charge(100, "returned")], START)
    buckets.settle([("returned", -rate.charge(99).increment)], START)
    for key in ("a", "b", "c"):
        buckets.take([rate.charge(50, key)], START)
    assert len(buckets) == 2


@pytest.mark.parametrize("amount", [2**31 - 1, 10**15])
def test_no_amount_leads_beyond_what_redis_can_count_exactly(amount):
    rate, buckets = Rate(1, 30 * 86_400, 10**9), Buckets()
    for _ in range(3):
        buckets.settle([("k", rate.charge(amount).increment)], START)
    assert buckets.ahead("k", START) == LONGEST
    assert START + 2 * LONGEST < 2**53
