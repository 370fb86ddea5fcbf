"""A ledger that is kept supplied with leases.

Decisions read and reserve at once, without waiting for anybody; a task asks the lease source for
more when an account runs low. Whether that is a share of the budget or Redis is not known here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from services.chassis.budgets.leases import LeaseSource
from services.chassis.budgets.ledger import LEASED_AT_ONCE, Budget, Ledger, Reservation

_log = logging.getLogger(__name__)

ASK_AGAIN_S = 1.0
"""After this a source is asked again that did not answer, or had nothing left."""

_GIVE_BACK_S = 2.0


class Supply:
    """The money of one process. `on_change` is called when there may be more of it."""

    def __init__(
        self,
        budget_of: Callable[[str], Budget | None],
        leases: LeaseSource,
        epoch_clock: Callable[[], float],
        *,
        slices: int = LEASED_AT_ONCE,
    ) -> None:
        """`budget_of` and `slices` are the ledger's."""
        self.ledger = Ledger(budget_of, slices=slices)
        self.on_change: Callable[[], None] = lambda: None
        self._leases = leases
        self._now = epoch_clock
        self._asked: set[str] = set()
        self._silent_until: dict[str, float] = {}
        self._unanswered: set[str] = set()
        self._asks = asyncio.Event()
        self._changed = asyncio.Event()

    def available(self, accounts: Iterable[str]) -> int | None:
        """What may be spent now from all of these together; None where nothing limits it."""
        found: int | None = None
        for account in accounts:
            if self.ledger.budget_of(account) is None:
                continue
            statement = self.ledger.statement(account, self._now())
            left = 0 if statement is None else max(statement.available, 0)
            found = left if found is None else min(found, left)
            self.want(account)
        return found

    def want(self, account: str) -> None:
        """Has more leased for an account that runs low."""
        if account in self._asked or not self.ledger.wants(account, self._now()):
            return
        if self._now() >= self._silent_until.get(account, 0.0):
            self._asked.add(account)
            self._asks.set()

    def ask_for(self, accounts: Iterable[str], amount: int) -> bool:
        """Whether more is being asked for, so that so much may be there in a moment."""
        asked = False
        for account in accounts:
            self.ledger.expect(account, amount)
            self.want(account)
            asked = asked or account in self._asked
        return asked

    def reserve(self, accounts: Iterable[str], amount: int) -> Reservation | None:
        """Sets money aside for one request in all accounts; None when one has not enough."""
        accounts = tuple(accounts)
        found = self.ledger.reserve(accounts, amount, self._now())
        for account in accounts:
            self.want(account)
        return found

    async def reserve_soon(
        self, accounts: Iterable[str], amount: int, patience: float
    ) -> Reservation | None:
        """As `reserve`, but waits up to `patience` seconds for money that is being asked for."""
        accounts = tuple(accounts)
        ends = asyncio.get_running_loop().time() + patience
        while (found := self.reserve(accounts, amount)) is None:
            if not self.ask_for(accounts, amount):
                return None
            try:
                async with asyncio.timeout_at(ends):
                    await self._changed.wait()
            except TimeoutError:
                # It may have come in the same turn of the loop.
                return self.reserve(accounts, amount)
        return found

    def settle(self, reservation: Reservation, actual: int) -> None:
        """The request cost so much."""
        self.ledger.settle(reservation, actual)

    def release(self, reservation: Reservation) -> None:
        """The request cost nothing."""
        self.ledger.release(reservation)

    def forget(self, account: str) -> bool:
        """Forgets an account whose period is over; False where it has money of one in force."""
        if account in self._asked or self.ledger.statement(account, self._now()) is not None:
            return False
        self.ledger.forget(account)
        self._silent_until.pop(account, None)
        self._unanswered.discard(account)
        return True

    def is_unanswered(self, account: str) -> bool:
        """Whether the source did not answer when it was last asked about an account."""
        return account in self._unanswered

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
                _log.exception("a budget could not be given back")

    async def _supply(self, account: str) -> None:
        budget = self.ledger.budget_of(account)
        want = self.ledger.wants(account, self._now())
        lease = None
        try:
            if budget is not None and want:
                lease = await self._leases.take(account, budget, want)
        except Exception:  # noqa: BLE001 - a store may fail as it likes
            # This task's end would be the process's; without a lease nothing is spent.
            _log.exception("no budget can be leased", extra={"account": account})
        finally:
            self._asked.discard(account)
        if lease is not None and lease.granted:
            self.ledger.lease(account, lease.granted, lease.period_start, lease.period_end)
        if lease is None or lease.granted < want:
            # Nobody answered, or the budget is used up: not to be asked for each request.
            self._silent_until[account] = self._now() + ASK_AGAIN_S
        if lease is None and want:
            self._unanswered.add(account)
        else:
            self._unanswered.discard(account)
        # Whoever waits holds the old one; the next to wait needs one that is not set.
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        self.on_change()

    async def _give_back(self) -> None:
        for account in self.ledger.accounts():
            budget = self.ledger.budget_of(account)
            statement = self.ledger.statement(account, self._now())
            if budget is not None and statement is not None:
                free = self.ledger.surrender(account)
                if free:
                    await self._leases.give_back(account, budget, free, statement.period_end)
