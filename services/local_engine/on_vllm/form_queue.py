"""The queue in which forms wait to be judged, and what is remembered of those that were. Pure.

What a form is, and who judges it, is form_guard's.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

PASSING_KEPT_S = 60.0
"""How long a verdict holds that may be another on another day: it took too long, met a machine
without memory, or crashed what judged it."""
PASSING_KEPT_MOST_S = 3600.0
"""Each further verdict of that kind on one form holds for twice as long, up to this."""


class FairQueue(Generic[T]):
    """First come, first served within a key, and the keys by turns; bounded in all and each."""

    def __init__(self, most: int, most_of_one: int) -> None:
        self._most, self._most_of_one = most, most_of_one
        self._keys: OrderedDict[str, deque[T]] = OrderedDict()
        self._held = 0

    def __len__(self) -> int:
        return self._held

    def put(self, key: str, item: T) -> bool:
        """Whether there was room for it."""
        if self._held >= self._most or len(self._keys.get(key, ())) >= self._most_of_one:
            return False
        self._keys.setdefault(key, deque()).append(item)
        self._held += 1
        return True

    def next(self) -> T | None:
        """The next item of the key whose turn it is."""
        if not self._keys:
            return None
        key, items = self._keys.popitem(last=False)
        self._held -= 1
        item = items.popleft()
        if items:
            self._keys[key] = items
        return item

    def discard(self, key: str, item: T) -> None:
        """Takes an item back, if it is there."""
        items = self._keys.get(key)
        if items is None or item not in items:
            return
        items.remove(item)
        self._held -= 1
        if not items:
            del self._keys[key]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a form is refused, or "". It holds `until`; it is the `times`th passing one in a row."""

    refused: str
    until: float = float("inf")
    times: int = 0


class Verdicts:
    """The verdicts on the forms that were asked for last, by the forms' names; `most` of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[bytes, Verdict] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: bytes, now: float) -> str | None:
        """Why the form is refused, "" if it is not, None where that is not known (any more)."""
        found = self._held.get(name)
        if found is None or found.until < now:
            return None
        self._held.move_to_end(name)
        return found.refused

    def add(self, name: bytes, refused: str, now: float, *, passing: bool = False) -> None:
        """Remembers a verdict, one that is `passing` for some time only."""
        verdict = Verdict(refused)
        if passing:
            before = self._held.get(name)
            times = 0 if before is None else before.times
            kept = min(PASSING_KEPT_S * 2.0**times, PASSING_KEPT_MOST_S)
            verdict = Verdict(refused, now + kept, min(times + 1, 16))
        self._held[name] = verdict
        self._held.move_to_end(name)
        while len(self._held) > self._most:
            self._held.popitem(last=False)
