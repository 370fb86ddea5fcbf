"""A provider account's API keys: which one to use next, and which are cooling down.

Decides only; the clock is passed in. Keys are never printed: a key is spoken of by its number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from services.chassis.settings import Secret

# A provider that says "in a day" is asked again after this many seconds all the same: limits
# are lifted by hand, and one request in a minute hurts nobody.
_LONGEST_COOLING = 60.0


@dataclass(slots=True)
class Key:
    """One key of a pool."""

    number: int
    secret: Secret | None
    cooling_until: float = 0.0
    rejected: bool = False


class KeyPool:
    """Keys that share one account or one purpose. A pool without keys sends no credential."""

    def __init__(self, secrets: Sequence[Secret], clock: Callable[[], float]) -> None:
        self._keys = [Key(n, secret) for n, secret in enumerate(secrets)] or [Key(0, None)]
        self._clock = clock
        self._next = 0

    def pick(self) -> Key | None:
        """The next key in turn that is not cooling down; None when all are."""
        now = self._clock()
        for step in range(len(self._keys)):
            key = self._keys[(self._next + step) % len(self._keys)]
            if key.cooling_until <= now:
                self._next = (key.number + 1) % len(self._keys)
                return key
        return None

    def cool(self, key: Key, seconds: float, *, rejected: bool = False) -> None:
        """Leaves `key` alone for a while; `rejected` when the provider refused it outright."""
        key.cooling_until = self._clock() + min(max(seconds, 0.0), _LONGEST_COOLING)
        key.rejected = rejected

    def good(self, key: Key) -> None:
        """The provider accepted this key."""
        key.cooling_until = 0.0
        key.rejected = False

    def wait(self) -> float:
        """Seconds until the first key is usable again; 0 when one is."""
        return max(min(key.cooling_until for key in self._keys) - self._clock(), 0.0)

    def all_rejected(self) -> bool:
        """Whether the provider refuses every key, which no waiting cures."""
        return all(key.rejected for key in self._keys)
