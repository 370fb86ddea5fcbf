"""What may be spent in the cloud: core's budget, kept supplied with leases.

Decisions read and reserve at once, without waiting for anybody; a task asks the lease source for
more when an account runs low. Whether that is a share of the budget or Redis is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from services.router.core.cloud_budget import (
    ALL,
    CloudBudget,
    Reservation,
    budgets_of,
    tenant_account,
)
from services.router.core.policy import Budget, Policy

_log = logging.getLogger(__name__)

_ASK_AGAIN_S = 1.0
_GIVE_BACK_S = 2.0


class Lease(Protocol):
    """Money for one period, in micro-USD; times in seconds since the epoch."""

    @property
    def granted(self) -> int:
        """So much, 0 when nothing is left."""

    @property
    def period_start(self) -> float:
        """When the period began."""

    @property
    def period_end(self) -> float:
        """When it ends."""


class LeaseSource(Protocol):
    """Who hands out budgets in slices. Never more in all than a budget holds."""

    async def take(self, account: str, budget: Budget, want: int) -> Lease | None:
        """Up to `want` of an account's budget; None while that cannot be said."""

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        """Returns `amount` of the period that ends then, unspent."""


class Spending:
    """The cloud money of one router process. `on_change` is called when there is more of it."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        leases: LeaseSource,
        epoch_clock: Callable[[], float],
    ) -> None:
        self._read_policy = policy
        self._leases = leases
        self._now = epoch_clock
        self._policy = policy()
        self._budget = CloudBudget(budgets_of(self._policy))
        self._unlimited = False
        self._follow(self._policy)
        self._asked: set[str] = set()
        self._silent_until: dict[str, float] = {}
        self._asks = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None

    def available(self, tenant: str) -> int | None:
        """What the tenant may spend now; None where nothing limits it."""
        policy = self._read_policy()
        if policy is not self._policy:
            self._follow(policy)
        if self._unlimited:
            return None
        found: int | None = None
        for account, budget in (
            (ALL, policy.cloud_budget),
            (tenant_account(tenant), policy.tenant(tenant).cloud_budget),
        ):
            if budget is None:
                continue
            statement = self._budget.statement(account, self._now())
            left = 0 if statement is None else max(statement.available, 0)
            found = left if found is None else min(found, left)
            self._want(account)
        return found

    def ask_for(self, tenant: str, amount: int) -> bool:
        """Whether more is being asked for, so that so much may be there in a moment."""
        accounts = (ALL, tenant_account(tenant))
        for account in accounts:
            self._budget.expect(account, amount)
            self._want(account)
        return not self._asked.isdisjoint(accounts)

    def reserve(self, tenant: str, amount: int) -> Reservation | None:
        """Sets money aside for one request; None when there is not enough."""
        accounts = (ALL, tenant_account(tenant))
        found = self._budget.reserve(accounts, amount, self._now())
        for account in accounts:
            self._want(account)
        return found

    def settle(self, reservation: Reservation, actual: int) -> None:
        """The request cost so much."""
        self._budget.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """The request cost nothing."""
        self._budget.release(reservation)

    async def keep_supplied(self) -> None:
        """Leases more for accounts that run low, until cancelled; then gives back what is free."""
        try:
            while True:
                await self._asks.wait()
                self._asks.clear()
                for account in sorted(self._asked):
                    await self._supply(account)
        finally:
            try:
                async with asyncio.timeout(_GIVE_BACK_S):
                    await self._give_back()
            except Exception:  # noqa: BLE001 - a store may fail as it likes
                # It stays leased, and so unspent, until its period ends.
                _log.exception("cloud budget could not be given back")

    def _follow(self, policy: Policy) -> None:
        self._policy = policy
        self._budget.budget_of = budgets_of(policy)
        tenants = policy.tenants.values()
        limited = policy.cloud_budget is not None or any(t.cloud_budget for t in tenants)
        self._unlimited = not limited

    def _want(self, account: str) -> None:
        if account in self._asked or not self._budget.wants(account, self._now()):
            return
        if self._now() >= self._silent_until.get(account, 0.0):
            self._asked.add(account)
            self._asks.set()

    async def _supply(self, account: str) -> None:
        budget = self._budget.budget_of(account)
        want = self._budget.wants(account, self._now())
        lease = None
        try:
            if budget is not None and want:
                lease = await self._leases.take(account, budget, want)
        except Exception:  # noqa: BLE001 - a store may fail as it likes
            # This task's end would be the process's; without a lease nothing is spent.
            _log.exception("no cloud budget can be leased", extra={"account": account})
        finally:
            self._asked.discard(account)
        if lease is not None and lease.granted:
            self._budget.lease(account, lease.granted, lease.period_start, lease.period_end)
        if lease is None or lease.granted < want:
            # Nobody answered, or the budget is used up: not to be asked for each request.
            self._silent_until[account] = self._now() + _ASK_AGAIN_S
        self.on_change()

    async def _give_back(self) -> None:
        for account in self._budget.accounts():
            budget = self._budget.budget_of(account)
            statement = self._budget.statement(account, self._now())
            if budget is not None and statement is not None:
                free = self._budget.surrender(account)
                if free:
                    await self._leases.give_back(account, budget, free, statement.period_end)
