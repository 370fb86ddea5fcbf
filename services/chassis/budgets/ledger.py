"""Money as accounts: reserved before a request is sent, settled when its cost is known. Pure.

It spends what the shell has leased from the store that all processes share, and nothing else: it
never asks anybody, and without a lease in force it refuses. Amounts are integers in millionths
of a US dollar. Times are seconds since the epoch, to which budgets' periods are aligned.

A lease is money that the store already counts as spent, so that many processes together keep within
a budget without asking it for each request. An account is a book per period; a reservation
remembers its books, so that what it cost is charged to the period in which it was allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

LEASED_AT_ONCE = 50
"""A lease is about this part of a budget: so much of it at most lies idle in one process."""


class Budget(Protocol):
    """So much money for each period of so many seconds, aligned to the epoch."""

    @property
    def microusd(self) -> int:
        """The amount, in millionths of a US dollar."""

    @property
    def period(self) -> float:
        """The period's length in seconds."""


class Statement(NamedTuple):
    """The figures of an account's period. `overrun` is what was spent beyond reservations."""

    granted: int
    reserved: int
    spent: int
    overrun: int
    period_end: float

    @property
    def available(self) -> int:
        """What may still be reserved; below zero after an overrun."""
        return self.granted - self.reserved - self.spent


class _Book:
    """One account in one period."""

    __slots__ = ("granted", "overrun", "period_end", "period_start", "reserved", "spent")

    def __init__(self, period_start: float, period_end: float) -> None:
        self.period_start = period_start
        self.period_end = period_end
        self.granted = 0
        self.reserved = 0
        self.spent = 0
        self.overrun = 0

    @property
    def available(self) -> int:
        return self.granted - self.reserved - self.spent


class _Account:
    """An account's current book, and the size of what is asked of it: a maximum that fades."""

    __slots__ = ("book", "largest")

    def __init__(self) -> None:
        self.book: _Book | None = None
        self.largest = 0


class Reservation:
    """Money set aside for one request. It ends once; ending it again does nothing."""

    __slots__ = ("_books", "amount")

    def __init__(self, amount: int, books: tuple[_Book, ...]) -> None:
        self.amount = amount
        self._books = books

    def _end(self) -> tuple[_Book, ...]:
        books, self._books = self._books, ()
        for book in books:
            book.reserved -= self.amount
        return books


class Ledger:
    """The leased money of one process."""

    __slots__ = ("_accounts", "_slices", "budget_of")

    def __init__(
        self, budget_of: Callable[[str], Budget | None], *, slices: int = LEASED_AT_ONCE
    ) -> None:
        """`budget_of` says what an account may spend in all; None: it has no limit.

        A lease is about the budget divided by `slices`; 1 where nobody else wants any of it.
        """
        self.budget_of = budget_of
        self._slices = slices
        self._accounts: dict[str, _Account] = {}

    def lease(self, account: str, granted: int, period_start: float, period_end: float) -> None:
        """Adds money for a period. What is for a period that is over comes too late and is lost.

        A later period than the current one replaces it, whatever the clock here says: the store's
        clock decides. So does a longer one that ends later, as after a change of the policy: its
        money would be lost until the current one ends. ValueError for a negative amount or a period
        that ends before it begins.
        """
        if granted < 0 or period_end <= period_start:
            raise ValueError(f"a lease of {granted} from {period_start} to {period_end}")
        known = self._account(account)
        book = known.book
        if book is None or book.period_start < period_start or book.period_end < period_end:
            book = known.book = _Book(period_start, period_end)
        elif book.period_start > period_start:
            return
        book.granted += granted

    def reserve(self, accounts: Iterable[str], amount: int, now: float) -> Reservation | None:
        """Sets `amount` aside in every account, or in none: None when one of them lacks it."""
        if amount < 0:
            raise ValueError(f"a reservation of {amount}")
        books: list[_Book] = []
        enough = True
        for account in accounts:
            if self.budget_of(account) is None:
                continue
            known = self._account(account)
            known.largest = max(amount, known.largest - (known.largest >> 3))
            book = known.book
            if book is None or now >= book.period_end or book.available < amount:
                enough = False
            elif book not in books:
                books.append(book)
        if not enough:
            return None
        for book in books:
            book.reserved += amount
        return Reservation(amount, tuple(books))

    def expect(self, account: str, amount: int) -> None:
        """A request of this size could not be reserved for: `wants` is to cover the next."""
        if self.budget_of(account) is not None:
            known = self._account(account)
            known.largest = max(amount, known.largest)

    def settle(self, reservation: Reservation, actual: int) -> None:
        """The request cost `actual`, all of which is charged, also what exceeds the reservation.

        It is charged to the period in which it was reserved.
        """
        if actual < 0:
            raise ValueError(f"a cost of {actual}")
        for book in reservation._end():
            book.spent += actual
            book.overrun += max(actual - reservation.amount, 0)

    def release(self, reservation: Reservation) -> None:
        """The request cost nothing."""
        reservation._end()

    def wants(self, account: str, now: float) -> int:
        """How much more the shell should lease; 0 while enough is there.

        Refilled at half: to a part of the budget, or to twice what one request asks for.
        """
        budget = self.budget_of(account)
        if budget is None:
            return 0
        known = self._account(account)
        book = known.book
        in_force = book is not None and now < book.period_end
        granted = book.granted if book is not None and in_force else 0
        available = book.available if book is not None and in_force else 0
        full = max(budget.microusd // self._slices, 2 * known.largest)
        if 2 * available >= full:
            return 0
        return max(min(full - available, budget.microusd - granted), 0)

    def surrender(self, account: str) -> int:
        """Takes out what is neither spent nor reserved, for the shell to give back to the store."""
        known = self._accounts.get(account)
        if known is None or known.book is None:
            return 0
        free = max(known.book.available, 0)
        known.book.granted -= free
        return free

    def statement(self, account: str, now: float) -> Statement | None:
        """The account's figures in the period of its lease; None without one in force."""
        known = self._accounts.get(account)
        if known is None or known.book is None or now >= known.book.period_end:
            return None
        book = known.book
        return Statement(book.granted, book.reserved, book.spent, book.overrun, book.period_end)

    def forget(self, account: str) -> None:
        """Nobody asks for it any more. What its lease still had is lost until its period ends."""
        self._accounts.pop(account, None)

    def accounts(self) -> tuple[str, ...]:
        """Every account that was ever asked for or leased to."""
        return tuple(self._accounts)

    def _account(self, account: str) -> _Account:
        known = self._accounts.get(account)
        if known is None:
            known = self._accounts[account] = _Account()
        return known
