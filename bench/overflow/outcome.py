"""What became of one request, as its caller saw it, and how many of them came off how. Pure.

Times are in seconds since the look began. A time to the first token counts from the moment when
the trace has the request, not from when a busy generator came round to send it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.dataplane.meter import percentile
from bench.overflow.plan import Objective

LOCAL, CLOUD = "local", "cloud"

HONEST = frozenset({"OVERLOADED", "DEADLINE_EXCEEDED", "NO_BACKEND"})
"""Refusals that tell the truth: there was no room for it in time."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request. `first` and `last` are None where no token came.

    `exact`: every token is the one that an undisturbed answer has. `pause` is the longest time
    between two tokens. `failed_at` names backends that lost or failed it, `resumed_at` the tokens
    after which it went on elsewhere.
    """

    number: int
    private: bool
    wanted: int
    at: float
    sent: float
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    pause: float = 0.0
    tier: str = ""
    backend: str = ""
    overflow: str = ""
    cost: int = 0
    queued: float = 0.0
    predicted: float = 0.0
    failed_at: Sequence[str] = ()
    resumed_at: Sequence[int] = ()
    failure: str = ""
    exact: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Outcome:
        """From JSON values."""
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @property
    def served(self) -> bool:
        """Whether the whole answer came."""
        return not self.failure

    @property
    def refused(self) -> bool:
        """Whether it was told honestly that there is no room, before any token."""
        return self.failure in HONEST and self.first is None

    @property
    def ttft(self) -> float:
        """Seconds to the first token; NaN without one."""
        return math.nan if self.first is None else self.first - self.at

    @property
    def tpot(self) -> float:
        """Mean seconds for each token after the first; NaN where there is none."""
        if self.first is None or self.last is None or self.tokens < 2:
            return math.nan
        return (self.last - self.first) / (self.tokens - 1)

    def attained(self, objective: Objective) -> bool:
        """Whether the whole answer came in time. One token has no pace."""
        return self.served and self.ttft <= objective.ttft and not self.tpot > objective.tpot


def figures(outcomes: Sequence[Outcome], objective: Objective) -> dict[str, Any]:
    """Counts, shares and delays of some outcomes; delays are of those that were served."""
    served = [one for one in outcomes if one.served]
    ttfts = sorted(one.ttft for one in served)
    tpots = sorted(one.tpot for one in served if not math.isnan(one.tpot))
    attained = sum(one.attained(objective) for one in outcomes)
    in_cloud = [one for one in served if one.tier == CLOUD]
    return {
        "requests": len(outcomes),
        "served": len(served),
        "attained": attained,
        "late": len(served) - attained,
        "refused": sum(one.refused for one in outcomes),
        "broken": sum(not one.served and not one.refused for one in outcomes),
        "inexact": sum(not one.exact for one in served),
        "served_share": _share(len(served), len(outcomes)),
        "slo_attainment": _share(attained, len(outcomes)),
        "cloud": len(in_cloud),
        "cloud_share": _share(len(in_cloud), len(outcomes)),
        "cost_microusd": sum(one.cost for one in outcomes),
        "ttft_p50": percentile(ttfts, 50),
        "ttft_p99": percentile(ttfts, 99),
        "local_ttft_p99": percentile(sorted(o.ttft for o in served if o.tier == LOCAL), 99),
        "cloud_ttft_p99": percentile(sorted(one.ttft for one in in_cloud), 99),
        "tpot_p50": percentile(tpots, 50),
        "tpot_p99": percentile(tpots, 99),
    }


def timeline(outcomes: Iterable[Outcome], seconds: int) -> dict[str, list[int]]:
    """For each second: requests that came, and of those how many each tier served, or nobody."""
    rows = {name: [0] * seconds for name in ("offered", LOCAL, CLOUD, "refused")}
    for one in outcomes:
        second = min(int(one.at), seconds - 1)
        rows["offered"][second] += 1
        rows[one.tier if one.served else "refused"][second] += 1
    return rows


def local_tokens(outcomes: Iterable[Outcome], begins: float, ends: float) -> float:
    """Tokens that the local tier made between two moments, each answer's evenly over its time."""
    made = 0.0
    for one in outcomes:
        if one.tier != LOCAL or one.first is None or one.last is None:
            continue
        took = one.last - one.first
        if took <= 0:
            made += one.tokens * (begins <= one.first < ends)
            continue
        shared = min(one.last, ends) - max(one.first, begins)
        made += one.tokens * max(shared, 0.0) / took
    return made


def touched(outcomes: Iterable[Outcome], backend: str) -> list[Outcome]:
    """Those that a backend lost."""
    return [one for one in outcomes if backend in one.failed_at]


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
