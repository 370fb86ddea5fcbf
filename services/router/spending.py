"""What may be spent in the cloud under the policy in force, by each tenant and by all together.

How money is leased, set aside and charged is the chassis's (budgets/); here is whose it is.
"""

from __future__ import annotations

from collections.abc import Callable

from services.chassis.budgets.leases import LeaseSource
from services.chassis.budgets.ledger import Reservation
from services.chassis.budgets.supply import Supply
from services.router.core.cloud_accounts import accounts_of, budgets_of
from services.router.core.policy import Policy

LEASES_PREFIX = "anabranch:budget:"
"""Of the keys in Redis, the same for all routers."""


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
        self.supply = Supply(budgets_of(self._policy), leases, epoch_clock)
        self._unlimited = False
        self._follow(self._policy)

    def available(self, tenant: str) -> int | None:
        """What the tenant may spend now; None where nothing limits it."""
        policy = self._read_policy()
        if policy is not self._policy:
            self._follow(policy)
        if self._unlimited:
            return None
        return self.supply.available(accounts_of(tenant))

    def ask_for(self, tenant: str, amount: int) -> bool:
        """Whether more is being asked for, so that so much may be there in a moment."""
        return self.supply.ask_for(accounts_of(tenant), amount)

    def reserve(self, tenant: str, amount: int) -> Reservation | None:
        """Sets money aside for one request; None when there is not enough."""
        return self.supply.reserve(accounts_of(tenant), amount)

    def settle(self, reservation: Reservation, actual: int) -> None:
        """The request cost so much."""
        self.supply.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """The request cost nothing."""
        self.supply.release(reservation)

    async def keep_supplied(self) -> None:
        """See Supply."""
        await self.supply.keep_supplied()

    def _follow(self, policy: Policy) -> None:
        self._policy = policy
        self.supply.ledger.budget_of = budgets_of(policy)
        tenants = policy.tenants.values()
        limited = policy.cloud_budget is not None or any(t.cloud_budget for t in tenants)
        self._unlimited = not limited
