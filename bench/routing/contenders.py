"""Who plays, by name: how each is called and made."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bench.routing import baselines, overflow, probing
from bench.routing.candidate import Candidate, Variant
from bench.routing.policy import Making
from bench.routing.scenarios import Scenario
from services.router.core.policy import Affinity, Policy

MISJUDGED = 0.3

LABELS = {
    "round-robin": "round robin",
    "p2c": "power of two",
    "lor": "least outstanding requests (LOR)",
    "peak-ewma": "Peak-EWMA",
    "gie": "GIE queue + KV, 50 ms old",
    "c3": "C3",
    "prequal": "Prequal",
    "lmetric": "LMetric",
    "oracle": "greedy on perfect state",
    "gie-saturation": "GIE saturation",
    "core": "**services/router/core**",
    "core-misjudged": "… prompt lengths misjudged by 30 %",
    "core-no-affinity": "… without affinity",
    "core-assumed": "… caches assumed, not told",
}

_PLAIN: dict[str, Making] = {
    "round-robin": baselines.RoundRobin,
    "p2c": baselines.PowerOfTwo,
    "lor": baselines.LeastOutstanding,
    "peak-ewma": baselines.PeakEwma,
    "gie": probing.GieQueueKv,
    "c3": baselines.C3,
    "prequal": probing.Prequal,
    "lmetric": baselines.LMetric,
    "oracle": probing.Oracle,
    "gie-saturation": overflow.GieSaturation,
}


def _usual(scenario: Scenario) -> Variant:
    return Variant(Policy(objective=scenario.objective))


def _without_affinity(scenario: Scenario) -> Variant:
    return Variant(Policy(objective=scenario.objective, affinity=Affinity(enabled=False)))


def _assumed(scenario: Scenario) -> Variant:
    return Variant(Policy(objective=scenario.objective), cache_events=False)


def _misjudged(scenario: Scenario) -> Variant:
    return Variant(Policy(objective=scenario.objective), misjudged=MISJUDGED)


_CORE: dict[str, Callable[[Scenario], Variant]] = {
    "core": _usual,
    "core-misjudged": _misjudged,
    "core-no-affinity": _without_affinity,
    "core-assumed": _assumed,
}


def making(name: str, scenario: Scenario) -> Making:
    """How a contender's routers are made for a scenario."""
    if name in _CORE:
        return partial(Candidate, variant=_CORE[name](scenario), cloud=scenario.cloud)
    if name.startswith("cap-"):
        return partial(overflow.StaticCap, cap=int(name.removeprefix("cap-")))
    return _PLAIN[name]


def label(name: str) -> str:
    """What it is called in tables."""
    if name.startswith("cap-"):
        return f"static cap of {name.removeprefix('cap-')}"
    return LABELS[name]
