"""How random arrivals meet a number of servers, and how a day rises and falls. Pure.

A replica serves so many requests at once, so a pool of replicas is a trunk group of telephony: the
share of requests that finds every slot busy, and overflows to the cloud, is Erlang's B formula; the
share that would wait where nothing may overflow is his C formula (A. K. Erlang, "Solution of some
Problems in the Theory of Probabilities of Significance in Automatic Telephone Exchanges", 1917).
B holds whatever the distribution of the times that requests take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

MOST_SERVERS = 262_144


def erlang_b(load: float, servers: int) -> float:
    """The share of arrivals that finds all `servers` busy, at `load` erlangs offered, and leaves.

    By the recursion B(0) = 1, B(c) = a·B(c-1) / (c + a·B(c-1)), which is exact and stable.
    """
    return next(b for c, b in blocking(load) if c == servers)


def erlang_c(load: float, servers: int) -> float:
    """The share of arrivals that has to wait where all who find the servers busy do; 1 from the
    load on that they cannot carry."""
    if load >= servers:
        return 1.0
    blocked = erlang_b(load, servers)
    return blocked / (1 - load / servers * (1 - blocked))


def daily_curve(peak: float) -> tuple[float, ...]:
    """24 hourly factors of mean 1 whose greatest, the first, is `peak`, from 1 to less than 24.

    The shape is von Mises's, exp(k·cos), which is flat at k = 0 and ever narrower.
    """

    def hours(sharpness: float) -> list[float]:
        shape = [math.exp(sharpness * (math.cos(2 * math.pi * h / 24) - 1)) for h in range(24)]
        mean = sum(shape) / 24
        return [value / mean for value in shape]

    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if hours(middle)[0] < peak else (low, middle)
    return tuple(hours(high))


def blocking(load: float) -> Iterator[tuple[int, float]]:
    """(servers, Erlang's B) for 0, 1, 2 … servers."""
    blocked = 1.0
    yield 0, blocked
    for servers in range(1, MOST_SERVERS + 1):
        blocked = load * blocked / (servers + load * blocked)
        yield servers, blocked
