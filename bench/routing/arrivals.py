"""When requests come: renewal processes over a load that changes with time.

Gaps are drawn on a clock that runs with the load, so that a burst is the same process, faster.
Times are in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import pi, sin
from random import Random

Gap = Callable[[Random], float]
"""Draws the time between two arrivals, in units of the mean one."""


def poisson(random: Random) -> float:
    """Nobody knows of anybody."""
    return random.expovariate(1.0)


def gamma(cv: float) -> Gap:
    """Gaps with this coefficient of variation; above 1 arrivals come in clumps."""
    shape = 1.0 / (cv * cv)
    return lambda random: random.gammavariate(shape, 1.0 / shape)


@dataclass(frozen=True)
class Profile:
    """The load over time: a factor for each stretch of `every` seconds, again and again."""

    factors: tuple[float, ...] = (1.0,)
    every: float = 1.0

    @property
    def mean(self) -> float:
        """The mean factor."""
        return sum(self.factors) / len(self.factors)

    @property
    def period(self) -> float:
        """Seconds after which it repeats."""
        return self.every * len(self.factors)


STEADY = Profile()


def waves(low: float, high: float, period: float, pieces: int = 60) -> Profile:
    """A load that swings between two factors like a sine, from its low."""
    middle, swing = (low + high) / 2, (high - low) / 2
    turns = ((i + 0.5) / pieces - 0.25 for i in range(pieces))
    return Profile(tuple(middle + swing * sin(2 * pi * turn) for turn in turns), period / pieces)


def bursts(low: float, high: float, period: float, share: float) -> Profile:
    """A load that jumps to `high` for a share of each period; the share is taken in twentieths."""
    busy = round(20 * share)
    return Profile((low,) * (20 - busy) + (high,) * busy, period / 20)


def minutes(peak: float, count: int, random: Random) -> Profile:
    """Minutes of different load around 1, the busiest of them `peak` times the mean."""
    raw = [random.lognormvariate(0.0, 0.5) for _ in range(count)]
    mean = sum(raw) / count
    # Stretched about the mean until the greatest is where it belongs.
    stretch = (peak - 1.0) / (max(raw) / mean - 1.0)
    return Profile(tuple(max(0.05, 1.0 + stretch * (one / mean - 1.0)) for one in raw), 60.0)


def times(rate: float, profile: Profile, gap: Gap, random: Random) -> Iterator[float]:
    """Arrivals without end, `rate` times the profile's factor of them a second."""
    now, factors, every = 0.0, profile.factors, profile.every
    piece = 0
    ends = every
    while True:
        left = gap(random) / rate
        while True:
            factor = factors[piece % len(factors)]
            step = left / factor if factor > 0 else float("inf")
            if now + step <= ends:
                now += step
                break
            left -= (ends - now) * factor
            now = ends
            piece += 1
            ends = every * (piece + 1)
        yield now


def variation(gaps: Sequence[float]) -> float:
    """The coefficient of variation of times between arrivals."""
    mean = sum(gaps) / len(gaps)
    square = sum((one - mean) ** 2 for one in gaps) / len(gaps)
    return float(square**0.5 / mean)
