"""Where processes get their budgets' money from, in slices that together never exceed a budget.

`ShareOfBudget` asks nobody: it is for processes that share their budgets with no others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from services.chassis.budgets.ledger import Budget


class Lease(NamedTuple):
    """Money for one period, in micro-USD, 0 when nothing is left; times in seconds since the
    epoch."""

    granted: int
    period_start: float
    period_end: float


class LeaseSource(Protocol):
    """Who hands out budgets in slices. Never more in all than a budget holds."""

    async def take(self, account: str, budget: Budget, want: int) -> Lease | None:
        """Up to `want` of an account's budget; None while that cannot be said."""

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        """Returns `amount` of the period that ends then, unspent."""


class ShareOfBudget:
    """An equal part of each budget for each of so many processes."""

    def __init__(self, processes: int, epoch_clock: Callable[[], float]) -> None:
        self._processes = processes
        self._now = epoch_clock
        self._taken: dict[str, tuple[float, int]] = {}

    async def take(self, account: str, budget: Budget, want: int) -> Lease:
        """Up to `want` of this process's part of the current period."""
        start = self._now() // budget.period * budget.period
        since, taken = self._taken.get(account, (start, 0))
        if since != start:
            taken = 0
        granted = max(min(want, budget.microusd // self._processes - taken), 0)
        self._taken[account] = (start, taken + granted)
        return Lease(granted, start, start + budget.period)

    async def give_back(self, account: str, budget: Budget, amount: int, period_end: float) -> None:
        """Returns what was not spent of the current period."""
        since, taken = self._taken.get(account, (0.0, 0))
        if since + budget.period == period_end:
            self._taken[account] = (since, taken - amount)
