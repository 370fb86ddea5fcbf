"""Quotas of money: which accounts a caller's rules add to those that a request is paid from.

A rule is known from the requests that bring it, since nothing else tells of it. How accounts are
kept, leased and charged is budgets' (chassis/budgets).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple, TypeAlias
from urllib.parse import quote

from services.chassis.budgets.leases import Lease, LeaseSource
from services.chassis.budgets.ledger import Budget
from services.chassis.principal import Principal
from services.chassis.quotas.rules import Subject, Unit

LEASES_PREFIX = "anabranch:quota-budget:"
"""Of the keys in Redis, the same for all who spend: a quota holds for all of them together."""

_KIND = "quota/"
_LOOKED_AT = 8


class QuotaBudget(NamedTuple):
    """So many millionths of a US dollar for each period of so many seconds; see Budget."""

    microusd: int
    period: float


Quotas: TypeAlias = tuple[tuple[str, QuotaBudget], ...]
"""Accounts that a request is paid from as well, and what each may spend."""

NO_QUOTAS: Quotas = ()
_NOTHING = QuotaBudget(0, 86_400.0)


def money_quotas(caller: Principal, model: str) -> Quotas:
    """The accounts of a caller's rules about money that concern a request for this model."""
    if not caller.quotas:
        return NO_QUOTAS
    found = []
    for rule in caller.quotas:
        if rule.unit is Unit.COST and rule.concerns(model):
            name = caller.tenant if rule.subject is Subject.TENANT else caller.client_id
            account = f"{_KIND}{rule.subject}/{quote(name, safe='')}/{rule.period}/{rule.model}"
            found.append((account, QuotaBudget(rule.limit, float(rule.period))))
    return tuple(found)


def is_quota(account: str) -> bool:
    """Whether an account is one of a quota, rather than of a budget that an operator set."""
    return account.startswith(_KIND)


class KnownQuotas:
    """What the accounts of quotas may spend, at most `most` of them.

    One that is not known may spend nothing: so one that was forgotten is not without a limit.
    """

    def __init__(self, forget: Callable[[str], bool], *, most: int = 10_000) -> None:
        """`forget` has the ledger forget an account; False while it has money of a lease."""
        self._forget = forget
        self._most = most
        self._known: OrderedDict[str, QuotaBudget] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, quotas: Quotas) -> None:
        """A request that is to be paid from these is here."""
        for account, budget in quotas:
            if account not in self._known and not self._has_room():
                continue
            self._known[account] = budget
            self._known.move_to_end(account)

    def budget_of(self, account: str) -> QuotaBudget:
        """What an account of a quota may spend in all."""
        return self._known.get(account, _NOTHING)

    def _has_room(self) -> bool:
        if len(self._known) < self._most:
            return True
        for account in [key for key, _ in zip(self._known, range(_LOOKED_AT), strict=False)]:
            if self._forget(account):
                del self._known[account]
                return True
            self._known.move_to_end(account)
        return False


class LeasesByKind:
    """A LeaseSource: quotas' accounts from one source, all others from another."""

    def __init__(self, quotas: LeaseSource, others: LeaseSource) -> None:
        self._quotas = quotas
        self._others = others

    async def take(self, account: str, budget: Budget, want: int) -> Lease | None:
        """See LeaseSource."""
        return await self._of(account).take(account, budget, want)

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        """See LeaseSource."""
        await self._of(account).give_back(account, budget, amount, period_end)

    def _of(self, account: str) -> LeaseSource:
        return self._quotas if is_quota(account) else self._others


def names(quotas: Iterable[tuple[str, QuotaBudget]]) -> tuple[str, ...]:
    """The accounts alone."""
    return tuple([account for account, _ in quotas])
