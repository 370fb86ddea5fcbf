"""Sizes and prices the ways to serve a workload: in the cloud, on one's own GPUs, on both. Pure.

Every hour of a weekday and of a weekend day is a load of its own; what arrives within it is random
(traffic.py). Figures of a cluster come in as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from anabranch.planning.traffic import MOST_SERVERS, blocking, daily_curve, erlang_b
from anabranch.planning.values import (
    CloudPrices,
    Option,
    Plan,
    PlanningError,
    Replica,
    Workload,
)

HOURS_PER_YEAR = 8760
_WEEKS = HOURS_PER_YEAR / 168
_MOST_REPLICAS = 1024
_MOST_REQUESTS = 1e9


def plan(
    work: Workload,
    replica: Replica,
    prices: CloudPrices,
    *,
    waiting: float = 0.01,
    spare: int = 0,
) -> Plan:
    """Sizes and prices the three ways to serve a workload.

    `waiting` is the share of requests that may find every slot busy in the busiest hour where they
    cannot overflow; `spare` are further replicas that local only keeps for failures.
    Raises PlanningError for figures out of range, or a workload beyond 1,024 replicas.
    """
    _check(work, replica, prices, waiting, spare)
    loads = _loads(work, replica.seconds(work))
    peak = max(load for load, _ in loads)
    wanted = _replicas_for(peak, replica.slots, waiting)
    at_least = _replicas_for(peak * work.private, replica.slots, waiting) if work.private else 0
    tried = _options(work, replica, prices, loads, most=wanted + 1, at_least=at_least)
    mean, requests = _mean(loads), work.requests_per_day * HOURS_PER_YEAR / 24
    cloud_only = _option(replica, 0, 1.0, 0.0, requests * prices.request(work))
    if work.private:
        cloud_only = replace(cloud_only, objection="private requests may not leave")
    alone = wanted + spare
    local_only = _option(replica, alone, 0.0, mean, 0.0)
    hybrid = min((o for o in tried if not o.objection), key=lambda o: o.dollars)
    return Plan(
        work=work,
        replica=replica,
        prices=prices,
        request_seconds=replica.seconds(work),
        peak_requests=peak,
        cloud_only=cloud_only,
        local_only=local_only,
        hybrid=hybrid,
        options=tried,
        first_replica_pays_from=_first_replica_pays_from(work, replica, prices),
        local_only_pays_from=_local_only_pays_from(work, replica, prices, waiting, spare),
    )


def _loads(work: Workload, seconds: float) -> list[tuple[float, float]]:
    """(erlangs offered, hours of a year) for each hour of a weekday and of a weekend day."""
    weekday = 7 / (5 + 2 * work.weekend)
    erlangs = work.requests_per_day / 86_400 * seconds
    found = []
    for factor, days in ((weekday, 5 * _WEEKS), (weekday * work.weekend, 2 * _WEEKS)):
        found += [(erlangs * factor * hour, days) for hour in daily_curve(work.peak)]
    return found


def _mean(loads: Sequence[tuple[float, float]]) -> float:
    return sum(load * hours for load, hours in loads) / sum(hours for _, hours in loads)


def _replicas_for(load: float, slots: int, waiting: float) -> int:
    """The fewest replicas at which no more than that share has to wait."""
    for servers, blocked in blocking(load):
        if servers % slots or servers <= load:
            continue
        if blocked / (1 - load / servers * (1 - blocked)) <= waiting:
            return servers // slots
    raise PlanningError(f"{load:,.0f} requests at once are beyond what this plans for")


def _options(
    work: Workload,
    replica: Replica,
    prices: CloudPrices,
    loads: Sequence[tuple[float, float]],
    *,
    most: int,
    at_least: int,
) -> tuple[Option, ...]:
    """What 0 to `most` replicas cost, with the overflow in the cloud."""
    if most > _MOST_REPLICAS:
        raise PlanningError(f"{most:,} replicas are beyond what this plans for")
    overflow = [0.0] * (most + 1)
    # Nights mirror days, and weekends may be days: equal loads are counted once.
    hours_of: dict[float, float] = {}
    for load, hours in loads:
        hours_of[load] = hours_of.get(load, 0.0) + hours
    for load, hours in hours_of.items():
        for servers, blocked in blocking(load):
            if servers % replica.slots == 0:
                # What is private waits instead: no more than the rest can leave.
                leaves = min(load * blocked, load * (1 - work.private))
                overflow[servers // replica.slots] += leaves * hours
                if servers == most * replica.slots:
                    break
    whole = sum(load * hours for load, hours in loads)
    requests = work.requests_per_day * HOURS_PER_YEAR / 24
    found = []
    for count in range(most + 1):
        share = overflow[count] / whole
        carried = whole * (1 - share) / HOURS_PER_YEAR
        option = _option(replica, count, share, carried, share * requests * prices.request(work))
        if count < at_least:
            reason = f"private requests alone need {at_least}"
            option = replace(option, objection=reason)
        found.append(option)
    return tuple(found)


def _option(
    replica: Replica, count: int, cloud_share: float, carried: float, cloud_dollars: float
) -> Option:
    """`carried` is the mean of requests that run here at once."""
    return Option(
        replicas=count,
        local_dollars=count * replica.dollars_per_hour * HOURS_PER_YEAR,
        cloud_dollars=cloud_dollars,
        cloud_share=cloud_share,
        utilisation=carried / (count * replica.slots) if count else 0.0,
    )


def _first_replica_pays_from(work: Workload, replica: Replica, prices: CloudPrices) -> float | None:
    """Requests a day from which one replica costs less than the cloud charges for what it takes.

    What a replica takes over grows with what arrives, so bisection finds it.
    """
    costs = replica.dollars_per_hour * HOURS_PER_YEAR

    def saves(requests: float) -> bool:
        loads = _loads(replace(work, requests_per_day=requests), replica.seconds(work))
        kept = sum(h * a * (1 - erlang_b(a, replica.slots)) for a, h in loads)
        whole = sum(h * a for a, h in loads)
        return kept / whole * requests * HOURS_PER_YEAR / 24 * prices.request(work) >= costs

    low, high = 0.0, _MOST_REQUESTS
    if not saves(high):
        return None
    while high - low > max(1.0, low / 1000):
        middle = (low + high) / 2
        low, high = (low, middle) if saves(middle) else (middle, high)
    return high


def _local_only_pays_from(
    work: Workload, replica: Replica, prices: CloudPrices, waiting: float, spare: int
) -> float | None:
    """Requests a day from which replicas for the busiest hour cost less than the cloud alone.

    Replicas come whole, so just above it there may be volumes where the cloud is cheaper again.
    """
    yearly = prices.request(work) * HOURS_PER_YEAR / 24
    each = replica.dollars_per_hour * HOURS_PER_YEAR
    if not yearly:
        return None
    requests = max(1.0, (1 + spare) * each / yearly)
    for _ in range(200):  # to fifty times that; beyond it the ratio of the two changes no more
        loads = _loads(replace(work, requests_per_day=requests), replica.seconds(work))
        peak = max(load for load, _ in loads)
        if peak > MOST_SERVERS / 2:
            return None
        count = _replicas_for(peak, replica.slots, waiting) + spare
        if count * each <= requests * yearly:
            return requests
        requests = max(requests * 1.02, min(requests * 2, count * each / yearly))
    return None


def _check(
    work: Workload, replica: Replica, prices: CloudPrices, waiting: float, spare: int
) -> None:
    """Raises PlanningError with every figure that is out of range."""
    cached = prices.prompt if prices.cached_prompt is None else prices.cached_prompt
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("requests a day", work.requests_per_day, 0.001, _MOST_REQUESTS),
        ("prompt tokens", work.prompt_tokens, 0, 1e7),
        ("output tokens", work.output_tokens, 1, 1e6),
        ("peak", work.peak, 1, 20),
        ("weekend", work.weekend, 0, 3.5),
        ("private share", work.private, 0, 1),
        ("cached share", work.cached, 0, 1),
        ("output tokens per second", replica.output_tokens_per_second, 0.001, 1e9),
        ("prompt tokens per second", replica.prompt_tokens_per_second, 0.001, math.inf),
        ("slots of a replica", replica.slots, 1, 65_536),
        ("dollars an hour", replica.dollars_per_hour, 0, 1e6),
        ("price of prompt tokens", prices.prompt, 0, 1e6),
        ("price of cached prompt tokens", cached, 0, 1e6),
        ("price of output tokens", prices.output, 0, 1e6),
        ("share that may wait", waiting, 1e-6, 0.5),
        ("spare replicas", spare, 0, 1000),
    )
    wrong = [
        f"{name} must be {low:,g} to {high:,g}, not {value:,g}"
        for name, value, low, high in ranges
        if not low <= value <= high
    ]
    if wrong:
        raise PlanningError("; ".join(wrong))
