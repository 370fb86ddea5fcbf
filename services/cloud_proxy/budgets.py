"""The proxy's budgets in force: money set aside, charged and told about, by account.

Each request is paid from three accounts, of everything, of its provider and of its tenant, where
the rules limit them; what is set aside is set aside in all or in none. How leases come and go is
the chassis's; what a request costs and what its caller is told, spending.py knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from redis.asyncio import Redis

from services.chassis.budgets.leases import LeaseSource, ShareOfBudget
from services.chassis.budgets.ledger import LEASED_AT_ONCE, Budget, Reservation
from services.chassis.budgets.redis_leases import RedisLeases
from services.chassis.budgets.supply import ASK_AGAIN_S, Supply
from services.chassis.quotas import money
from services.chassis.quotas.money import (
    NO_QUOTAS,
    KnownQuotas,
    LeasesByKind,
    Quotas,
    is_quota,
    names,
)
from services.cloud_proxy.budget_rules import BudgetRules, accounts_of

LEASES_PREFIX = "anabranch:provider-budget:"
"""Of the keys in Redis, the same for all cloud proxies; routers keep theirs under another one."""

PATIENCE_S = 0.25
"""How long a request waits for a lease that is on its way."""


class Lack(StrEnum):
    """Why an account does not cover a request."""

    TOO_SMALL = "too_small"  # even its whole budget would not
    UNANSWERED = "unanswered"  # whoever keeps the budget did not answer
    SET_ASIDE = "set_aside"  # it would, but for what running requests may cost
    USED_UP = "used_up"  # the period's money is spent, or held by other processes


@dataclass(frozen=True, slots=True)
class Shortage:
    """One account that does not cover a request. Times in seconds."""

    account: str
    lack: Lack
    period_end: float
    retry_after: float


class Budgets:
    """The budgets of one process. `keep_supplied` runs beside it."""

    def __init__(
        self,
        rules: BudgetRules,
        leases: LeaseSource,
        epoch_clock: Callable[[], float],
        *,
        slices: int = LEASED_AT_ONCE,
        patience: float = PATIENCE_S,
    ) -> None:
        """`slices` is the ledger's; `patience` in seconds bounds each wait for a lease."""
        self._rules = rules
        self._now = epoch_clock
        self._patience = patience
        self._supply = Supply(self._budget_of, leases, epoch_clock, slices=slices)
        self._quotas = KnownQuotas(self._supply.forget)

    def limits(self, tenant: str, provider: str) -> bool:
        """Whether any budget applies."""
        return any(self._rules.budget_of(a) is not None for a in accounts_of(tenant, provider))

    def available(self, tenant: str, provider: str) -> int | None:
        """What may be spent at once, in micro-USD; None where nothing limits it."""
        return self._supply.available(accounts_of(tenant, provider))

    def reserve(self, tenant: str, provider: str, amount: int) -> Reservation | None:
        """Sets so much aside in every account, or in none: None when one of them lacks it."""
        accounts = accounts_of(tenant, provider)
        return None if self._too_much(accounts, amount) else self._supply.reserve(accounts, amount)

    async def reserve_soon(
        self, tenant: str, provider: str, amount: int, quotas: Quotas = NO_QUOTAS
    ) -> Reservation | None:
        """As `reserve`, but waits a moment for a lease that is on its way. It is paid from the
        accounts of the caller's `quotas` as well."""
        self._quotas.learn(quotas)
        accounts = accounts_of(tenant, provider) + names(quotas)
        if self._too_much(accounts, amount):
            return None
        return await self._supply.reserve_soon(accounts, amount, self._patience)

    def settle(self, reservation: Reservation, actual: int) -> None:
        """It cost so much: all of it is charged, also what exceeds the reservation."""
        self._supply.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """It cost nothing."""
        self._supply.release(reservation)

    def shortages(
        self, tenant: str, provider: str, amount: int, quotas: Quotas = NO_QUOTAS
    ) -> list[Shortage]:
        """The accounts that do not cover so much now."""
        accounts = accounts_of(tenant, provider) + names(quotas)
        found = (self._shortage(account, amount) for account in accounts)
        return [shortage for shortage in found if shortage is not None]

    async def keep_supplied(self) -> None:
        """Leases what is needed, until cancelled; then gives back what is free."""
        for account in self._rules.named_accounts():
            # Before anybody needs it, so that first requests seldom wait.
            self._supply.want(account)
        await self._supply.keep_supplied()

    def observe(self, meter: Meter) -> None:
        """Creates the instruments; they read the ledger at each scrape."""
        meter.create_observable_gauge(
            "anabranch.cloud.budget.spent",
            callbacks=[self._spent],
            unit="{microusd}",
            description="Charged by this process in the current period, by account",
        )
        meter.create_observable_gauge(
            "anabranch.cloud.budget.available",
            callbacks=[self._available],
            unit="{microusd}",
            description="Leased to this process and neither spent nor set aside, by account",
        )
        meter.create_observable_gauge(
            "anabranch.cloud.budget.limit",
            callbacks=[self._limits],
            unit="{microusd}",
            description="What all processes together may spend in a period, by account",
        )

    # The accounts that the file names, and no more: their number does not grow with callers.

    def _spent(self, _: CallbackOptions) -> Iterable[Observation]:
        for account in self._rules.named_accounts():
            statement = self._supply.ledger.statement(account, self._now())
            yield Observation(0 if statement is None else statement.spent, _labels(account))

    def _available(self, _: CallbackOptions) -> Iterable[Observation]:
        for account in self._rules.named_accounts():
            statement = self._supply.ledger.statement(account, self._now())
            if statement is not None:
                yield Observation(statement.available, _labels(account))

    def _limits(self, _: CallbackOptions) -> Iterable[Observation]:
        for account in self._rules.named_accounts():
            budget = self._rules.budget_of(account)
            if budget is not None:
                yield Observation(budget.microusd, _labels(account))

    def _too_much(self, accounts: Iterable[str], amount: int) -> bool:
        """Whether a whole budget is too small: then nothing is leased for it, in vain."""
        budgets = (self._budget_of(account) for account in accounts)
        return any(budget is not None and amount > budget.microusd for budget in budgets)

    def _budget_of(self, account: str) -> Budget | None:
        if is_quota(account):
            return self._quotas.budget_of(account)
        return self._rules.budget_of(account)

    def _shortage(self, account: str, amount: int) -> Shortage | None:
        budget = self._budget_of(account)
        if budget is None:
            return None
        now = self._now()
        statement = self._supply.ledger.statement(account, now)
        if statement is not None and statement.available >= amount:
            return None
        ends = (now // budget.period + 1) * budget.period
        if statement is not None:
            ends = statement.period_end
        if amount > budget.microusd:
            lack = Lack.TOO_SMALL
        elif self._supply.is_unanswered(account):
            lack = Lack.UNANSWERED
        elif statement is not None and statement.available + statement.reserved >= amount:
            lack = Lack.SET_ASIDE
        else:
            lack = Lack.USED_UP
        soon = lack in (Lack.UNANSWERED, Lack.SET_ASIDE)
        return Shortage(account, lack, ends, min(ASK_AGAIN_S, ends - now) if soon else ends - now)


def open_budgets(
    rules: BudgetRules, redis: Redis | None, epoch_clock: Callable[[], float]
) -> Budgets:
    """Budgets shared through Redis with other proxies; without it, all of them for this one."""
    if redis is None:
        return Budgets(rules, ShareOfBudget(1, epoch_clock), epoch_clock, slices=1)
    leases = LeasesByKind(
        quotas=RedisLeases(redis, epoch_clock, prefix=money.LEASES_PREFIX),
        others=RedisLeases(redis, epoch_clock, prefix=LEASES_PREFIX),
    )
    return Budgets(rules, leases, epoch_clock)


def _labels(account: str) -> dict[str, str]:
    return {"anabranch.budget.account": account}
