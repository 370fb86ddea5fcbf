"""What may be spent in the cloud: by all, by each tenant, and by callers with quotas.

The policy in force and the callers' credentials say how much.

How money is leased, set aside and charged is the chassis's (budgets/); here is whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from services.chassis.budgets.leases import LeaseSource
from services.chassis.budgets.ledger import Budget, Reservation
from services.chassis.budgets.supply import Supply
from services.chassis.principal import Principal
from services.chassis.quotas.money import (
    NO_QUOTAS,
    KnownQuotas,
    Quotas,
    is_quota,
    money_quotas,
    names,
)
from services.router.core.cloud_accounts import accounts_of, budgets_of
from services.router.core.policy import Policy

LEASES_PREFIX = "anabranch:budget:"
"""Of the keys in Redis, the same for all routers."""


class Payer(NamedTuple):
    """Who pays for a request: all accounts in full, among them those of the caller's quotas."""

    tenant: str
    accounts: tuple[str, ...]
    quotas: Quotas = NO_QUOTAS


def payer_of(caller: Principal, model: str) -> Payer:
    """Who pays for a caller's request for a model, by the name that the request has for it."""
    quotas = money_quotas(caller, model)
    return Payer(caller.tenant, accounts_of(caller.tenant) + names(quotas), quotas)


def payer_of_tenant(tenant: str) -> Payer:
    """Who would pay for a request of a tenant's client that has no quotas of its own."""
    return Payer(tenant, accounts_of(tenant))


class Spending:
    """The cloud money of one router process. `supply` says when there is more of it."""

    def __init__(
        self,
        policy: Callable[[], Policy],
        leases: LeaseSource,
        epoch_clock: Callable[[], float],
    ) -> None:
        self._read_policy = policy
        self._policy = policy()
        self.supply = Supply(self._budget_of, leases, epoch_clock)
        self._quotas = KnownQuotas(self.supply.forget)
        self._unlimited = False
        self._follow(self._policy)

    def available(self, payer: Payer) -> int | None:
        """What may be spent for the payer now; None where nothing limits it."""
        policy = self._read_policy()
        if policy is not self._policy:
            self._follow(policy)
        if payer.quotas:
            self._quotas.learn(payer.quotas)
        elif self._unlimited:
            return None
        return self.supply.available(payer.accounts)

    def ask_for(self, payer: Payer, amount: int) -> bool:
        """Whether more is being asked for, so that so much may be there in a moment."""
        self._quotas.learn(payer.quotas)
        return self.supply.ask_for(payer.accounts, amount)

    def reserve(self, payer: Payer, amount: int) -> Reservation | None:
        """Sets money aside for one request; None when there is not enough."""
        self._quotas.learn(payer.quotas)
        return self.supply.reserve(payer.accounts, amount)

    def settle(self, reservation: Reservation, actual: int) -> None:
        """The request cost so much."""
        self.supply.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """The request cost nothing."""
        self.supply.release(reservation)

    async def keep_supplied(self) -> None:
        """See Supply."""
        await self.supply.keep_supplied()

    def _budget_of(self, account: str) -> Budget | None:
        return self._quotas.budget_of(account) if is_quota(account) else self._policy_of(account)

    def _follow(self, policy: Policy) -> None:
        self._policy = policy
        self._policy_of = budgets_of(policy)
        tenants = policy.tenants.values()
        limited = policy.cloud_budget is not None or any(t.cloud_budget for t in tenants)
        self._unlimited = not limited
