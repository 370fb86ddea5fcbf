"""The waiting requests of one class, in the order of their deadlines and in that of their arrival.

A sorted list rather than a heap, since it is walked in order each time capacity frees. Adding
and removing compare O(log n) times and move a part of an array of pointers: 1 µs at 1,000
entries, where trees in Python take ten.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from itertools import islice
from math import inf
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)


class Entry(NamedTuple, Generic[K]):
    """One that waits. Entries compare by deadline, then by number, which is that of arrival."""

    deadline: float
    number: int
    arrived: float
    target: float
    rank: int
    patience_ends: bool
    """Whether the deadline is the longest wait allowed rather than its own."""
    key: K


class Lane(Generic[K]):
    """The entries of one class."""

    __slots__ = ("_by_arrival", "_by_deadline")

    def __init__(self) -> None:
        self._by_deadline: list[Entry[K]] = []
        # Not a dict: looking for the first one there passes over every entry that has left.
        self._by_arrival: OrderedDict[int, Entry[K]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_deadline)

    def add(self, entry: Entry[K]) -> None:
        """Adds the entry that arrived last."""
        insort(self._by_deadline, entry)
        self._by_arrival[entry.number] = entry

    def remove(self, entry: Entry[K]) -> None:
        """Removes an entry that is in the lane."""
        del self._by_arrival[entry.number]
        del self._by_deadline[bisect_left(self._by_deadline, entry)]

    def earliest(self) -> Entry[K] | None:
        """The entry with the earliest deadline."""
        return self._by_deadline[0] if self._by_deadline else None

    def oldest(self) -> Entry[K] | None:
        """The entry that has waited longest."""
        return next(iter(self._by_arrival.values()), None)

    def longest_waiting(self, most: int) -> list[Entry[K]]:
        """So many of the entries that have waited longest, the longest first."""
        return list(islice(self._by_arrival.values(), most))

    def ahead_of(self, deadline: float) -> int:
        """How many go before one that arrives now with this deadline."""
        entries = self._by_deadline
        if not entries or entries[-1].deadline <= deadline:
            return len(entries)
        return bisect_right(entries, (deadline, inf))

    def in_order(self, before: int) -> Iterator[Entry[K]]:
        """Entries of a lower number than `before`, by deadline; the lane may change on the way."""
        entries = self._by_deadline
        at = 0
        while at < len(entries):
            entry = entries[at]
            if entry.number < before:
                yield entry
            if at < len(entries) and entries[at] is entry:
                at += 1
            else:
                at = bisect_right(entries, entry)
