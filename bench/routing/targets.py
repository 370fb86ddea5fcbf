"""What routing is to reach, and whether a run has reached it. Pure: from the record.

Ratios are taken within a seed. The static cap that overflow is held against is the cheapest one
of those tried that attains the objective as often as is asked of the router: one tuned by hand,
for this traffic and hardware, with the answer known.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.dataplane.summary import Figure, figure
from bench.routing.contenders import label
from bench.routing.run import BASELINE, number, of, ratio
from bench.routing.scenarios import BY_NAME, CAPS

Record = Mapping[str, Any]

CANDIDATE, C3 = "core", "c3"

TO_LOR = {
    ("alike", 1): 0.60,
    ("half-slow", 1): 0.50,
    ("antagonists", 1): 0.45,
    ("alike", 4): 0.80,
    ("half-slow", 4): 0.65,
    ("antagonists", 4): 0.65,
}
"""p99 of the time to the first token over that of LOR, by scenario and routers."""

ATTAINED = 0.996
COST_TO_CAP = 0.70
DECISION_US = {16: 50.0, 128: 200.0}


@dataclass(frozen=True)
class Verdict:
    """One line of the table. `limit` None: told, not aimed at. `digits` are those shown."""

    what: str
    where: str
    unit: str
    found: Figure
    limit: float | None
    at_most: bool = True
    digits: int = 2

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the limit; None without either."""
        median = self.found["median"]
        if median is None or self.limit is None:
            return None
        return median <= self.limit if self.at_most else median >= self.limit

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "what": self.what,
            "where": self.where,
            "unit": self.unit,
            "found": self.found,
            "limit": self.limit,
            "at_most": self.at_most,
            "met": self.met,
        }


def verdicts(record: Record) -> list[Verdict]:
    """Every target, also those that the run did not measure."""
    return list(_verdicts(record))


def _verdicts(record: Record) -> Iterator[Verdict]:
    made = record["samples"]
    for (name, routers), limit in TO_LOR.items():
        found = _ratio(made, name, routers, BASELINE)
        yield Verdict("p99 TTFT, × LOR", where(name, routers), "×", found, limit)
    for name, routers in TO_LOR:
        # Alone, it is to be better than C3 by what LOR's limits say; among four, no worse.
        limit_c3 = 1.0 if routers > 1 else None
        found = _ratio(made, name, routers, C3)
        yield Verdict("p99 TTFT, × C3", where(name, routers), "×", found, limit_c3)
    for name in ("overflow", "overflow-mixed"):
        yield from _overflow(made, name)
    for routers in (1, 4):
        gone = (
            number(s, "lost") + number(s, "refused") for s in of(made, "kill", CANDIDATE, routers)
        )
        yield Verdict("requests lost", where("kill", routers), "", figure(gone), 0.0, digits=0)
    yield from _decisions(record.get("decision_time") or ())


def where(scenario: str, routers: int) -> str:
    """A scenario's title, with its routers where they are several."""
    title = BY_NAME[scenario].title
    return title if routers == 1 else f"{title}, {_COUNTS.get(routers, routers)} routers"


_COUNTS = {4: "four"}


def _ratio(made: Sequence[dict[str, Any]], scenario: str, routers: int, other: str) -> Figure:
    mine, theirs = (of(made, scenario, policy, routers) for policy in (CANDIDATE, other))
    return ratio(mine, theirs, "ttft_p99_ms")


def _overflow(made: Sequence[dict[str, Any]], name: str) -> Iterator[Verdict]:
    mine, title = of(made, name, CANDIDATE), BY_NAME[name].title
    attained = figure(100 * number(sample, "slo") for sample in mine)
    yield Verdict("objective attained", title, "%", attained, 100 * ATTAINED, at_most=False)
    cap = best_cap(made, name)
    against = label(cap) if cap else "static cap"
    cost = ratio(mine, of(made, name, cap), "cloud_cost") if cap else figure(())
    yield Verdict(f"cloud cost, × {against}", title, "×", cost, COST_TO_CAP)


def best_cap(made: Sequence[dict[str, Any]], scenario: str) -> str | None:
    """The cheapest cap that attains the objective, else the one that attains it most."""
    tried = []
    for cap in CAPS:
        policy = f"cap-{cap}"
        found = of(made, scenario, policy)
        attained = figure(number(sample, "slo") for sample in found)["median"]
        cost = figure(number(sample, "cloud_cost") for sample in found)["median"]
        if attained is not None and cost is not None:
            tried.append((policy, attained, cost))
    if not tried:
        return None
    good = [one for one in tried if one[1] >= ATTAINED]
    return min(good, key=lambda one: one[2])[0] if good else max(tried, key=lambda one: one[1])[0]


def _decisions(rows: Sequence[Record]) -> Iterator[Verdict]:
    by_kind = {(row["backends"], row["prefix_blocks"] > 0): row for row in rows}
    for backends, limit in DECISION_US.items():
        for with_blocks in (False, True):
            row = by_kind.get((backends, with_blocks))
            prompt = "long prompt with blocks" if with_blocks else "no blocks"
            pool = f"{backends} backends, {prompt}"
            for at, asked in ((50, limit), (99, None)):
                found = figure(row[f"choose_p{at}_us"] if row else [math.nan])
                what = "one decision, median" if at == 50 else "one decision, p99"
                yield Verdict(what, pool, "µs", found, asked, digits=0)


def headline(record: Record) -> str:
    """The run in one sentence; empty where it has not measured what the sentence says."""
    made = record["samples"]
    to_lor = [
        _ratio(made, name, 1, BASELINE)["median"] for name in ("alike", "half-slow", "antagonists")
    ]
    if any(value is None for value in to_lor):
        return ""
    alike, mixed, antagonists = to_lor
    sentence = (
        f"With one router, p99 of the time to the first token is {alike:.2f}× that of least "
        f"outstanding requests on replicas alike, {mixed:.2f}× where half of them are twice as "
        f"slow, and {antagonists:.2f}× where antagonists come and go"
    )
    cap = best_cap(made, "overflow")
    mine = of(made, "overflow", CANDIDATE)
    if cap and mine:
        attained = figure(100 * number(sample, "slo") for sample in mine)["median"]
        cost = ratio(mine, of(made, "overflow", cap), "cloud_cost")["median"]
        if attained is not None and cost is not None:
            sentence += (
                f"; in bursts, {attained:.1f} % of answers meet the objective at {cost:.2f}× the "
                "cloud cost of the best static cap"
            )
    return sentence + "."
