"""How many repeats first attempts earn."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.core.policy import RetryRules
from services.router.core.retry_budget import TTL_S, RetryBudget

NO_FLOOR = RetryRules(per_second=0.0)


def withdrawn(budget: RetryBudget, now: float, tries: int) -> int:
    return sum(budget.withdraw(now) for _ in range(tries))


def test_five_first_attempts_buy_one_repeat():
    budget = RetryBudget(NO_FLOOR)
    for _ in range(4):
        budget.deposit(100.0)
    assert not budget.withdraw(100.0)
    budget.deposit(100.0)
    assert budget.withdraw(100.0)
    assert not budget.withdraw(100.0)


def test_without_traffic_there_are_so_many_a_second():
    budget = RetryBudget(RetryRules(per_second=2.0))
    assert withdrawn(budget, 100.0, tries=1000) == 2 * TTL_S
    assert withdrawn(budget, 100.0 + TTL_S, tries=1000) == 2 * TTL_S


def test_what_was_earned_is_forgotten():
    budget = RetryBudget(NO_FLOOR)
    for _ in range(1000):
        budget.deposit(100.0)
    assert budget.balance(109.0) == pytest.approx(200.0)
    assert budget.balance(110.1) == pytest.approx(0.0)


def test_other_rules_apply_at_once():
    budget = RetryBudget(NO_FLOOR)
    budget.deposit(100.0)
    budget.set_rules(RetryRules(ratio=1.0, per_second=0.0))
    assert withdrawn(budget, 100.0, tries=5) == 1


def test_a_retry_storm_adds_a_fifth():
    """Every attempt fails and is repeated as often as allowed, for a minute."""
    budget, first, repeats = RetryBudget(NO_FLOOR), 0, 0
    for tick in range(60_000):
        now = 100.0 + tick / 1000
        budget.deposit(now)
        first += 1
        repeats += withdrawn(budget, now, tries=4)
    assert 0.19 * first <= repeats <= 0.2 * first


@given(
    st.lists(
        st.tuples(st.floats(0.0, 3.0), st.integers(0, 40), st.integers(0, 80)),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from([0.0, 0.1, 0.2, 0.5]),
    st.sampled_from([0.0, 1.0, 10.0]),
)
def test_repeats_never_exceed_their_share_and_the_floor(steps, ratio, floor):
    budget = RetryBudget(RetryRules(ratio=ratio, per_second=floor))
    now, first, repeats = 100.0, 0, 0
    for gap, attempts, tries in steps:
        now += gap
        for _ in range(attempts):
            budget.deposit(now)
        first += attempts
        repeats += withdrawn(budget, now, tries)
        # Windows end at the moments of spending, so they cover the time and one window more; they
        # move in tenths, so they may be a tenth shorter.
        windows = 1 + (now - 100.0) / (0.9 * TTL_S)
        assert repeats <= ratio * first + floor * TTL_S * windows + 1e-6
        assert budget.balance(now) >= -ratio * first - 1e-6
