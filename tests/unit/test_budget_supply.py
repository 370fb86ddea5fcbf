"""Budgets kept supplied with leases: who may wait for one, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from services.chassis.budgets.leases import Lease, LeaseSource, ShareOfBudget
from services.chassis.budgets.supply import Supply
from tests.support.waiting import BOUND_S, until

ACME, ALL = "tenant:acme", "all"
BOTH = (ACME, ALL)


class Budget(NamedTuple):
    """As a ledger wants it."""

    microusd: int
    period: float = 100.0


class Clock:
    """The seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Silent:
    """A source that does not answer."""

    async def take(self, account: str, budget: Budget, want: int) -> Lease | None:
        return None

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        return None


class Late(ShareOfBudget):
    """A source that answers when it is told to."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(1, clock)
        self.may_answer = asyncio.Event()

    async def take(self, account, budget, want):
        await self.may_answer.wait()
        return await super().take(account, budget, want)


@asynccontextmanager
async def supply(
    source: LeaseSource, clock: Clock, budgets: dict[str, Budget]
) -> AsyncIterator[Supply]:
    found = Supply(budgets.get, source, clock)
    supplying = asyncio.create_task(found.keep_supplied())
    yield found
    supplying.cancel()
    await asyncio.wait((supplying,))


async def test_the_first_request_waits_for_the_first_lease():
    clock = Clock()
    source = Late(clock)
    async with supply(source, clock, {ACME: Budget(1000), ALL: Budget(1000)}) as money:
        waiting = asyncio.create_task(money.reserve_soon(BOTH, 1000, BOUND_S))
        await asyncio.sleep(0)
        assert not waiting.done()
        source.may_answer.set()
        reservation = await waiting
        assert reservation is not None
        assert money.available(BOTH) == 0


async def test_all_who_wait_get_what_is_there_and_nobody_more():
    clock = Clock()
    async with supply(ShareOfBudget(1, clock), clock, {ACME: Budget(1000)}) as money:
        asked = [money.reserve_soon(BOTH, 100, BOUND_S) for _ in range(30)]
        found = await asyncio.gather(*asked)
        assert sum(r is not None for r in found) == 10


async def test_who_has_no_patience_does_not_wait():
    clock = Clock()
    source = Late(clock)
    async with supply(source, clock, {ACME: Budget(1000)}) as money:
        assert await money.reserve_soon((ACME,), 10, 0.0) is None
        assert money.available((ACME,)) == 0


async def test_nobody_waits_for_a_budget_that_is_used_up():
    clock = Clock()
    async with supply(ShareOfBudget(1, clock), clock, {ACME: Budget(100)}) as money:
        assert await money.reserve_soon((ACME,), 100, BOUND_S) is not None
        async with asyncio.timeout(BOUND_S):
            assert await money.reserve_soon((ACME,), 1, 10 * BOUND_S) is None
        assert not money.is_unanswered(ACME)


async def test_a_source_that_does_not_answer_is_told_apart_from_an_empty_one():
    clock = Clock()
    async with supply(Silent(), clock, {ACME: Budget(100)}) as money:
        async with asyncio.timeout(BOUND_S):
            assert await money.reserve_soon((ACME,), 1, 10 * BOUND_S) is None
        assert money.is_unanswered(ACME)


async def test_a_new_period_is_waited_for_as_the_first_one_was():
    clock = Clock()
    async with supply(ShareOfBudget(1, clock), clock, {ACME: Budget(100)}) as money:
        assert await money.reserve_soon((ACME,), 100, BOUND_S) is not None
        assert await money.reserve_soon((ACME,), 100, BOUND_S) is None
        clock.now += 100.0
        assert await money.reserve_soon((ACME,), 100, BOUND_S) is not None


async def test_accounts_without_a_budget_cost_no_wait():
    clock = Clock()
    async with supply(Silent(), clock, {}) as money:
        assert await money.reserve_soon(BOTH, 10**15, 0.0) is not None
        assert money.available(BOTH) is None


async def test_money_is_asked_for_before_anybody_needs_it():
    clock = Clock()
    async with supply(ShareOfBudget(1, clock), clock, {ACME: Budget(1000)}) as money:
        money.want(ACME)

        async def leased() -> bool:
            return money.ledger.statement(ACME, clock()) is not None

        await until(leased)
