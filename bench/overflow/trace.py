"""The requests of a look: when they come, how long they are, and which must not leave. Pure.

Arrivals are a renewal process with gamma-distributed gaps of a coefficient of variation of 3,
within phases of different load. Lengths are those of Azure's 2023 conversation trace, scaled down.
The same seed gives the same trace, whatever is done with it.

Little of what is compared is left to chance: each phase has exactly as many requests as its load
asks for, and its lengths are drawn one from each of as many equal parts of their distribution.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from bench.overflow.plan import Phase

CV = 3.0
"""Coefficient of variation of the gaps; 1 would be Poisson's."""

_AT = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9)
_INPUT = (29, 181, 207, 387, 403, 703, 1020, 1071, 1130, 1315, 2734, 4083, 4142, 6179)
_OUTPUT = (16, 41, 54, 77, 91, 103, 129, 177, 384, 400, 424, 451, 601, 954)
"""Azure's 2023 conversation trace: tokens at these percentiles."""

INPUT_SCALE, OUTPUT_SCALE = 1 / 8, 1 / 4
LEAST_INPUT, LEAST_OUTPUT = 56, 4
"""Tokens; what a prompt says of itself takes as many."""

_STRATA = 2000


@dataclass(frozen=True, slots=True)
class Item:
    """One request: when it comes, in seconds since the look began, and its lengths in tokens."""

    number: int
    at: float
    private: bool
    prompt: int
    output: int


def make(seed: str, rate: float, phases: Sequence[Phase], private: float) -> list[Item]:
    """The trace: `rate` requests a second where the load is 1, a share of them private."""
    found: list[Item] = []
    begins = 0.0
    for number, phase in enumerate(phases):
        count = round(rate * phase.load * phase.seconds)
        # Streams of their own: a change of one leaves the others as they are.
        random = [Random(f"{seed}/{number}/{what}") for what in ("at", "in", "out", "who")]  # noqa: S311
        times = arrivals(count, phase.seconds, random[0])
        prompts = lengths(_INPUT, INPUT_SCALE, LEAST_INPUT, count, random[1])
        outputs = lengths(_OUTPUT, OUTPUT_SCALE, LEAST_OUTPUT, count, random[2])
        inside = set(random[3].sample(range(count), round(private * count)))
        found += [
            Item(len(found) + i, begins + times[i], i in inside, prompts[i], outputs[i])
            for i in range(count)
        ]
        begins += phase.seconds
    return found


def arrivals(count: int, seconds: float, random: Random) -> list[float]:
    """So many arrivals within so many seconds, in order."""
    shape = 1 / CV**2
    sums = list(accumulate(random.gammavariate(shape, 1.0) for _ in range(count + 1)))
    return [seconds * reached / sums[-1] for reached in sums[:-1]]


def lengths(
    row: Sequence[float], scale: float, least: int, count: int, random: Random
) -> list[int]:
    """So many lengths of a distribution given by its percentiles, in random order."""
    found = [
        scaled(row, 100 * (part + random.random()) / count, scale, least) for part in range(count)
    ]
    random.shuffle(found)
    return found


def scaled(row: Sequence[float], percentile: float, scale: float, least: int) -> int:
    """The length at a percentile, log-linear between those that are known, scaled."""
    if percentile <= _AT[0]:
        value = float(row[0])
    elif percentile >= _AT[-1]:
        value = float(row[-1])
    else:
        above = bisect_right(_AT, percentile)
        share = (percentile - _AT[above - 1]) / (_AT[above] - _AT[above - 1])
        value = row[above - 1] * (row[above] / row[above - 1]) ** share
    return max(round(value * scale), least)


def mean_prompt() -> float:
    """Mean tokens of a prompt."""
    return _mean(_INPUT, INPUT_SCALE, LEAST_INPUT)


def mean_output() -> float:
    """Mean tokens of an answer."""
    return _mean(_OUTPUT, OUTPUT_SCALE, LEAST_OUTPUT)


def _mean(row: Sequence[float], scale: float, least: int) -> float:
    parts = (100 * (part + 0.5) / _STRATA for part in range(_STRATA))
    return math.fsum(scaled(row, at, scale, least) for at in parts) / _STRATA
