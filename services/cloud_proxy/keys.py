"""TEMPORARY."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from services.chassis.settings import Secret


class Blocked(Enum):
    LIMITED = 1
    REJECTED = 2
    NO_CREDIT = 3
    FAILING = 4


@dataclass(slots=True)
class Key:
    number: int
    secret: Secret | None
    until: float = 0.0
    why: Blocked = Blocked.LIMITED


class KeyPool:
    def __init__(self, secrets, clock):
        self._keys = [Key(n, s) for n, s in enumerate(secrets)] or [Key(0, None)]
        self._clock = clock
        self._next = 0

    def pick(self, model, tokens=0):
        now = self._clock()
        for step in range(len(self._keys)):
            k = self._keys[(self._next + step) % len(self._keys)]
            if k.until <= now:
                self._next = (k.number + 1) % len(self._keys)
                return k
        return None

    @contextmanager
    def using(self, key):
        yield

    def observe(self, key, model, limits):
        pass

    def good(self, key):
        key.until = 0.0

    def failed(self, key):
        pass

    def limited(self, key, model, s):
        key.until = self._clock() + min(s, 60)
        key.why = Blocked.LIMITED

    def rejected(self, key):
        key.until = self._clock() + 30
        key.why = Blocked.REJECTED

    def out_of_credit(self, key):
        key.until = self._clock() + 30
        key.why = Blocked.NO_CREDIT

    def blocked_by(self):
        return min(self._keys, key=lambda k: k.until).why

    def wait(self, model, tokens=0):
        return max(min(k.until for k in self._keys) - self._clock(), 0.0)
