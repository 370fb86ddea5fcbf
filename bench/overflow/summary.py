"""From looks to rows: medians over the rounds with their spread, ratios within a round. Pure.

Delays, shares and costs are those of sound looks; counts are of all: a promise to lose nothing
holds on a busy machine too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bench.dataplane.summary import Figure, figure, pairs
from bench.overflow.plan import Strategy
from bench.overflow.sample import is_invalid

Record = Mapping[str, Any]

SHARES = ("slo_attainment", "served_share", "cloud_share")
DELAYS = ("ttft_p50", "ttft_p99", "local_ttft_p99", "cloud_ttft_p99", "tpot_p50", "tpot_p99")
COUNTS = ("requests", "served", "attained", "late", "refused", "broken", "inexact", "cloud")


def rows(samples: Sequence[Record]) -> list[dict[str, Any]]:
    """One row for each strategy that was looked at."""
    return [
        _row(strategy, mine, samples) for strategy in Strategy if (mine := of(samples, strategy))
    ]


def of(samples: Sequence[Record], strategy: Strategy) -> list[Record]:
    """The looks at one strategy."""
    return [sample for sample in samples if sample["strategy"] == strategy.value]


def sound(samples: Sequence[Record]) -> list[Record]:
    """The looks of which nothing says that the machine was measured."""
    return [sample for sample in samples if not is_invalid(sample["marks"])]


def _row(strategy: Strategy, mine: Sequence[Record], samples: Sequence[Record]) -> dict[str, Any]:
    row: dict[str, Any] = {"strategy": strategy.value, "rounds": len(mine)}
    good = sound(mine)
    for who in ("allowed", "private"):
        row[who] = {name: figure(s[who][name] for s in good) for name in SHARES + DELAYS}
        row[who] |= {name: sum(s[who][name] for s in mine) for name in COUNTS}
    row["cost_per_1000"] = figure(cost_per_1000(sample) for sample in good)
    row["cost_to_cap"] = cost_ratio(samples, strategy, Strategy.CAP)
    row["cost_to_cloud"] = cost_ratio(samples, strategy, Strategy.CLOUD)
    row["overload_use"] = figure(sample["overload_use"] for sample in good)
    row["provider_private"] = sum(sample["provider_private"] for sample in mine)
    row["reasons"] = added_up(sample["reasons"] for sample in mine)
    row["failures"] = added_up(sample["failures"] for sample in mine)
    row["marks"] = marked(mine)
    return row


def cost_per_1000(sample: Record) -> float:
    """Micro-USD for each thousand requests that may leave."""
    allowed = sample["allowed"]
    count = allowed["requests"]
    return 1000 * float(allowed["cost_microusd"]) / count if count else math.nan


def cost_ratio(samples: Sequence[Record], mine: Strategy, other: Strategy) -> Figure:
    """What one strategy's cloud costs, in what another's does; within a round."""
    good = sound(samples)
    return figure(
        a["allowed"]["cost_microusd"] / (b["allowed"]["cost_microusd"] or math.nan)
        for a, b in pairs(of(good, mine), of(good, other))
    )


def attainment_over(samples: Sequence[Record], mine: Strategy, other: Strategy) -> Figure:
    """By how many points the objective is attained more often; within a round."""
    good = sound(samples)
    return figure(
        100 * (a["allowed"]["slo_attainment"] - b["allowed"]["slo_attainment"])
        for a, b in pairs(of(good, mine), of(good, other))
    )


def marked(samples: Sequence[Record]) -> list[str]:
    """Each mark with how many of the looks have it."""
    found = added_up(dict.fromkeys(sample["marks"], 1) for sample in samples)
    return [f"{mark} in {count}/{len(samples)}" for mark, count in found.items()]


def added_up(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Sums by name."""
    found: dict[str, int] = {}
    for count in counts:
        for name, number in count.items():
            found[name] = found.get(name, 0) + number
    return dict(sorted(found.items()))
