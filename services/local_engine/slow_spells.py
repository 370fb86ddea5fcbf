"""When a simulated engine is slow, by a schedule. Pure; of the simulation only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.chassis.setting_values import parse

_KEYS = ("at", "for", "factor", "every")


@dataclass(frozen=True, slots=True)
class SlowSpell:
    """From `at` on, `length` seconds long, steps take `factor` times as long; 0: never again.

    With `every` it comes back each so many seconds.
    """

    at: float
    length: float
    factor: float
    every: float = 0.0

    def covers(self, now: float) -> bool:
        """Whether it is going on, so many seconds after the start."""
        since = now - self.at
        if since < 0:
            return False
        return (since % self.every if self.every else since) < self.length


def slow_spells(text: str) -> tuple[SlowSpell, ...]:
    """Reads "at=10s,for=5s,factor=3,every=60s", several with ";" between. Raises ValueError."""
    return tuple(_spell(part) for part in text.split(";") if part.strip())


def factor_at(spells: Sequence[SlowSpell], now: float) -> float:
    """How many times as long steps take then; spells that overlap multiply."""
    factor = 1.0
    for spell in spells:
        if spell.covers(now):
            factor *= spell.factor
    return factor


def _spell(text: str) -> SlowSpell:
    given: dict[str, str] = {}
    for pair in text.split(","):
        key, equals, value = pair.strip().partition("=")
        if not equals or key not in _KEYS or key in given:
            raise ValueError('must read like "at=10s,for=5s,factor=3" or "…,every=60s"')
        given[key] = value
    if any(key not in given for key in ("at", "for", "factor")):
        raise ValueError("needs at, for and factor for each spell")
    at, length, every = (parse(given.get(key, "0"), float) for key in ("at", "for", "every"))
    factor = float(given["factor"])
    if min(at, length, every) < 0 or not 0.01 <= factor <= 1000:
        raise ValueError("takes times of 0 or more and factors from 0.01 to 1000")
    if every and every <= length:
        raise ValueError("needs every to be longer than for")
    return SlowSpell(at, length, factor, every)
