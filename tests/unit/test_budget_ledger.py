"""Budgets: nothing is spent that was not leased, and nothing leaks."""

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from services.chassis.budgets.ledger import Ledger, Statement

ACME = "tenant:acme"
ALL = "all"
DAY = 86_400.0
NOW = 10 * DAY + 100.0
BOTH = (ACME, ALL)


class Budget(NamedTuple):
    """As a ledger wants it."""

    microusd: int
    period: float = DAY


def with_lease(acme: int = 1000, everyone: int = 1000) -> Ledger:
    budget = Ledger(lambda _: Budget(100_000))
    budget.lease(ACME, acme, 10 * DAY, 11 * DAY)
    budget.lease(ALL, everyone, 10 * DAY, 11 * DAY)
    return budget


def figures(budget: Ledger, account: str = ACME) -> tuple[int, int, int, int]:
    statement = budget.statement(account, NOW)
    assert statement is not None
    return statement[:4]


def test_without_a_lease_nothing_is_spent():
    budget = Ledger(lambda _: Budget(100_000))
    assert budget.reserve(BOTH, 1, NOW) is None


def test_an_account_without_a_budget_always_passes():
    budget = Ledger(lambda account: None if account == ACME else Budget(1000))
    assert budget.reserve((ACME,), 10**12, NOW) is not None
    assert budget.reserve(BOTH, 1, NOW) is None, "the other account still counts"


def test_a_reservation_takes_from_both_accounts():
    budget = with_lease()
    assert budget.reserve(BOTH, 600, NOW) is not None
    assert figures(budget, ACME) == figures(budget, ALL) == (1000, 600, 0, 0)
    assert budget.reserve(BOTH, 401, NOW) is None
    assert budget.reserve(BOTH, 400, NOW) is not None


def test_when_one_account_lacks_the_money_neither_is_touched():
    budget = with_lease(acme=1000, everyone=10)
    assert budget.reserve(BOTH, 11, NOW) is None
    assert figures(budget, ACME) == (1000, 0, 0, 0)


def test_an_account_named_twice_is_charged_once():
    budget = with_lease()
    budget.reserve((ACME, ACME), 600, NOW)
    assert figures(budget) == (1000, 600, 0, 0)


def test_settling_charges_what_it_cost_and_frees_the_rest():
    budget = with_lease()
    reservation = budget.reserve(BOTH, 600, NOW)
    budget.settle(reservation, 250)
    assert figures(budget) == (1000, 0, 250, 0)


def test_releasing_charges_nothing():
    budget = with_lease()
    budget.release(budget.reserve(BOTH, 600, NOW))
    assert figures(budget) == (1000, 0, 0, 0)


def test_a_reservation_ends_once():
    budget = with_lease()
    reservation = budget.reserve(BOTH, 600, NOW)
    budget.settle(reservation, 600)
    budget.settle(reservation, 600)
    budget.release(reservation)
    assert figures(budget) == (1000, 0, 600, 0)


def test_an_overrun_is_charged_fully_and_blocks_until_more_is_leased():
    budget = with_lease()
    budget.settle(budget.reserve(BOTH, 900, NOW), 1500)
    statement = budget.statement(ACME, NOW)
    assert statement == Statement(1000, 0, 1500, 600, 11 * DAY)
    assert statement.available == -500
    assert budget.reserve(BOTH, 0, NOW) is None
    assert budget.wants(ACME, NOW) >= 500
    for account in BOTH:
        budget.lease(account, 600, 10 * DAY, 11 * DAY)
    assert budget.reserve(BOTH, 100, NOW) is not None


def test_a_lease_ends_with_its_period():
    budget = with_lease()
    assert budget.reserve(BOTH, 1, 11 * DAY) is None
    assert budget.statement(ACME, 11 * DAY) is None
    assert budget.wants(ACME, 11 * DAY) > 0


def test_what_was_reserved_yesterday_is_charged_to_yesterday():
    budget = with_lease()
    reservation = budget.reserve(BOTH, 600, NOW)
    tomorrow = 11 * DAY + 1
    for account in BOTH:
        budget.lease(account, 1000, 11 * DAY, 12 * DAY)
    budget.settle(reservation, 5000)
    assert budget.statement(ACME, tomorrow)[:4] == (1000, 0, 0, 0)
    assert budget.reserve(BOTH, 1000, tomorrow) is not None


def test_a_lease_for_a_period_that_is_over_comes_too_late():
    budget = with_lease()
    budget.lease(ACME, 5000, 9 * DAY, 10 * DAY)
    assert figures(budget) == (1000, 0, 0, 0)


def test_the_store_decides_when_a_period_begins():
    budget = with_lease()
    budget.lease(ACME, 70, 11 * DAY, 12 * DAY)
    assert budget.statement(ACME, 11 * DAY - 0.2)[:1] == (70,), "our clock is behind"


def test_a_period_made_longer_begins_at_once():
    budget = Ledger(lambda _: Budget(100_000))
    hour = NOW // 3600 * 3600
    budget.lease(ACME, 1000, hour, hour + 3600)
    # The policy says now that the budget is for a day: what is leased is for that.
    budget.lease(ACME, 500, 10 * DAY, 11 * DAY)
    assert figures(budget)[0] == 500
    assert budget.statement(ACME, hour + 7200) is not None


def test_a_period_made_shorter_begins_at_once():
    budget = with_lease()
    hour = (NOW + 3600) // 3600 * 3600
    budget.lease(ACME, 500, hour, hour + 3600)
    assert figures(budget)[0] == 500


def test_it_wants_a_part_of_the_budget_and_again_when_half_is_gone():
    budget = Ledger(lambda _: Budget(100_000))
    assert budget.wants(ACME, NOW) == 2000
    budget.lease(ACME, 2000, 10 * DAY, 11 * DAY)
    assert budget.wants(ACME, NOW) == 0
    budget.settle(budget.reserve((ACME,), 900, NOW), 900)
    assert budget.wants(ACME, NOW) == 0
    budget.settle(budget.reserve((ACME,), 500, NOW), 500)
    assert budget.wants(ACME, NOW) == 1400


def test_who_shares_with_nobody_wants_all_of_it_at_once():
    budget = Ledger(lambda _: Budget(100_000), slices=1)
    assert budget.wants(ACME, NOW) == 100_000
    budget.lease(ACME, 100_000, 10 * DAY, 11 * DAY)
    budget.settle(budget.reserve((ACME,), 99_000, NOW), 99_000)
    assert budget.wants(ACME, NOW) == 0


def test_it_wants_enough_for_what_was_refused():
    budget = Ledger(lambda _: Budget(100_000))
    assert budget.reserve((ACME,), 40_000, NOW) is None
    budget.lease(ACME, budget.wants(ACME, NOW), 10 * DAY, 11 * DAY)
    assert budget.reserve((ACME,), 40_000, NOW) is not None


def test_one_dear_request_does_not_make_leases_large_forever():
    budget = Ledger(lambda _: Budget(100_000))
    budget.reserve((ACME,), 40_000, NOW)
    for _ in range(60):
        budget.reserve((ACME,), 10, NOW)
    assert budget.wants(ACME, NOW) == 2000


def test_it_never_wants_more_than_the_budget():
    budget = Ledger(lambda _: Budget(1000))
    budget.reserve((ACME,), 5000, NOW)
    assert budget.wants(ACME, NOW) == 1000
    budget.lease(ACME, 1000, 10 * DAY, 11 * DAY)
    budget.settle(budget.reserve((ACME,), 1000, NOW), 1000)
    assert budget.wants(ACME, NOW) == 0


def test_without_a_budget_it_wants_nothing():
    assert Ledger(lambda _: None).wants(ACME, NOW) == 0


def test_what_is_free_can_be_given_back():
    budget = with_lease()
    budget.reserve(BOTH, 300, NOW)
    assert budget.surrender(ACME) == 700
    assert figures(budget) == (300, 300, 0, 0)
    assert budget.surrender("tenant:nobody") == 0


def test_amounts_below_zero_are_refused():
    budget = with_lease()
    with pytest.raises(ValueError, match="-1"):
        budget.reserve(BOTH, -1, NOW)
    with pytest.raises(ValueError, match="-1"):
        budget.lease(ACME, -1, 10 * DAY, 11 * DAY)
    with pytest.raises(ValueError, match="-1"):
        budget.settle(budget.reserve(BOTH, 1, NOW), -1)


amounts = st.integers(0, 400)


class Accounts(RuleBasedStateMachine):
    """Leases, reservations and days in any order, against sums kept by hand."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.budget = Ledger(lambda _: Budget(100_000))
        self.day = 10
        self.granted = dict.fromkeys(BOTH, 0)
        self.spent = dict.fromkeys(BOTH, 0)
        self.open: dict[int, tuple[int, int, tuple[str, ...]]] = {}
        self.next = 0

    @property
    def now(self) -> float:
        return self.day * DAY + 5.0

    @rule(account=st.sampled_from(BOTH), amount=st.integers(0, 1000))
    def lease(self, account, amount):
        self.budget.lease(account, amount, self.day * DAY, (self.day + 1) * DAY)
        self.granted[account] += amount

    @rule(target=reservations, accounts=st.sampled_from([BOTH, (ACME,), (ALL,)]), amount=amounts)
    def reserve(self, accounts, amount):
        left = [self.granted[a] - self.spent[a] - self.reserved(a) for a in accounts]
        reservation = self.budget.reserve(accounts, amount, self.now)
        # An account that nothing was leased to today has no book: not even nothing fits there.
        if any(self.budget.statement(a, self.now) is None for a in accounts):
            assert reservation is None
        else:
            assert (reservation is not None) == (min(left) >= amount)
        self.next += 1
        if reservation is not None:
            self.open[self.next] = (self.day, amount, accounts)
        return self.next, reservation

    @rule(reserved=consumes(reservations), part=st.floats(0, 1))
    def settle(self, reserved, part):
        number, reservation = reserved
        if reservation is None:
            return
        day, amount, accounts = self.open.pop(number)
        actual = int(amount * part)
        self.budget.settle(reservation, actual)
        if day == self.day:
            for account in accounts:
                self.spent[account] += actual

    @rule(reserved=consumes(reservations))
    def release(self, reserved):
        number, reservation = reserved
        if reservation is not None:
            del self.open[number]
            self.budget.release(reservation)

    @rule(account=st.sampled_from(BOTH))
    def surrender(self, account):
        if self.budget.statement(account, self.now) is not None:
            self.granted[account] -= self.budget.surrender(account)

    @rule()
    def midnight(self):
        self.day += 1
        self.granted = dict.fromkeys(BOTH, 0)
        self.spent = dict.fromkeys(BOTH, 0)

    def reserved(self, account: str) -> int:
        return sum(
            amount
            for day, amount, accounts in self.open.values()
            if day == self.day and account in accounts
        )

    @invariant()
    def nothing_is_spent_that_was_not_leased_and_nothing_leaks(self):
        for account in BOTH:
            statement = self.budget.statement(account, self.now)
            if statement is None:
                assert self.granted[account] == 0
                continue
            assert statement.available >= 0
            assert statement[:4] == (
                self.granted[account],
                self.reserved(account),
                self.spent[account],
                0,
            )


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(amounts, amounts), max_size=40))
def test_overruns_are_never_lost(requests):
    budget, spent = with_lease(10_000, 10_000), 0
    for reserved, actual in requests:
        reservation = budget.reserve(BOTH, reserved, NOW)
        if reservation is None:
            assert budget.statement(ACME, NOW).available < reserved
            continue
        budget.settle(reservation, actual)
        spent += actual
    assert figures(budget)[1:3] == (0, spent)
    assert figures(budget)[3] >= max(spent - 10_000, 0) - 400
