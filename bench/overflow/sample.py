"""A look's figures, from what became of its requests and from the books of the processes. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from bench.dataplane.meter import percentile
from bench.overflow import outcome
from bench.overflow.outcome import Outcome
from bench.overflow.plan import OBJECTIVE, Phase

Sample = dict[str, Any]
Cores = Sequence[Mapping[str, float]]
"""Cores that each process used, second by second."""
Waits = Sequence[Mapping[str, float]]
"""Seconds that each process waited for a core, second by second."""

SATURATED = 0.9
"""Share of a core, over two seconds, from which a process may have been what was measured."""
BUSY = 0.95
"""The same of all cores together."""
NOISY = 0.2
"""Cores that other programs took, from which a look is doubtful."""
STARVED_S = 0.5
"""Of one second, in which a process could have run and had no core: what then was late was not its
doing."""
LATE_S = 0.05
"""By so much the generator may be late with one request in a hundred."""
BUILDS_UP_S = 0.5
"""Of each overload, time in which the line is only building up."""

_INVALID = ("saturated", "starved", "generator late")


def summed_up(
    outcomes: Sequence[Outcome],
    phases: Sequence[Phase],
    tokens_per_second: float,
    cores: Cores,
    waits: Waits,
    *,
    machine: int,
) -> Sample:
    """Everything about one look at a machine of so many cores; `tokens_per_second` is the local
    capacity."""
    seconds = math.ceil(sum(phase.seconds for phase in phases))
    late = percentile(sorted(one.sent - one.at for one in outcomes), 99)
    allowed = [one for one in outcomes if not one.private]
    return {
        "allowed": outcome.figures(allowed, OBJECTIVE),
        "private": outcome.figures([one for one in outcomes if one.private], OBJECTIVE),
        "overload_use": overload_use(outcomes, phases, tokens_per_second),
        "reasons": counted(one.overflow for one in outcomes),
        "unexplained": sum(one.tier == outcome.CLOUD and not one.overflow for one in allowed),
        "failures": counted(one.failure for one in outcomes),
        "timeline": outcome.timeline(outcomes, seconds),
        "late_p99": late,
        "cores": use_of_cores(cores),
        "waits": longest_waits(waits),
        "marks": marks(cores, waits, late, machine),
    }


def overload_use(
    outcomes: Sequence[Outcome], phases: Sequence[Phase], tokens_per_second: float
) -> float:
    """Share of the local capacity that was used while the load was above it; NaN if it never was.

    Less than 1 means that requests were paid for while slots were idle.
    """
    begins = used = counted_s = 0.0
    for phase in phases:
        ends = begins + phase.seconds
        if phase.load > 1.0 and phase.seconds > 2 * BUILDS_UP_S:
            used += outcome.local_tokens(outcomes, begins + BUILDS_UP_S, ends)
            counted_s += phase.seconds - BUILDS_UP_S
        begins = ends
    return used / (counted_s * tokens_per_second) if counted_s else math.nan


def use_of_cores(seconds: Cores) -> dict[str, dict[str, float]]:
    """Mean and greatest cores of each process, the greatest over two seconds."""
    found = {}
    for name in seconds[0] if seconds else ():
        values = [second[name] for second in seconds]
        over_two = [(before + after) / 2 for before, after in pairwise(values)] or values
        found[name] = {"mean": sum(values) / len(values), "most": max(over_two)}
    return found


def longest_waits(seconds: Waits) -> dict[str, float]:
    """The most that each process waited for a core in any one second."""
    return {name: max(second[name] for second in seconds) for name in seconds[0]} if seconds else {}


def marks(seconds: Cores, waits: Waits, late: float, machine: int) -> list[str]:
    """What makes a look doubtful; see `is_invalid` for what makes it worthless.

    `machine` is how many cores there are.
    """
    found = []
    for name, use in use_of_cores(seconds).items():
        if name == "others":
            if use["mean"] >= NOISY:
                found.append("other programs")
        elif name == "machine":
            if use["most"] >= BUSY * machine:
                found.append("all cores busy")
        elif use["most"] >= SATURATED:
            found.append(f"{name} saturated")
    found += [f"{name} starved" for name, wait in longest_waits(waits).items() if wait > STARVED_S]
    if late > LATE_S:
        found.append("generator late")
    return found


def is_invalid(found: Iterable[str]) -> bool:
    """Whether the marks say that the machine was measured, and not the strategy."""
    return any(mark.endswith(_INVALID) for mark in found)


def counted(words: Iterable[str]) -> dict[str, int]:
    """How often each word occurs; empty ones do not count."""
    return dict(sorted(Counter(filter(None, words)).items()))


def in_short(sample: Mapping[str, Any]) -> str:
    """One look in a few words."""
    allowed, private = sample["allowed"], sample["private"]
    parts = [
        f"{allowed['slo_attainment']:.1%} in time",
        f"p99 TTFT {allowed['ttft_p99'] * 1e3:,.0f} ms",
        f"{allowed['cloud_share']:.1%} in the cloud for {allowed['cost_microusd']:,} µUSD",
        f"private: {private['slo_attainment']:.1%} in time",
    ]
    parts += [f"{count}× {what}" for what, count in sample["failures"].items()]
    return ", ".join([*parts, *sample["marks"]])
