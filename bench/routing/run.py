"""Makes the runs of some scenarios, several at once, and sums them up over their seeds.

It prints nothing: whoever calls it is told of each run that is done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

from bench.dataplane.summary import Figure, figure
from bench.routing.play import Run, play
from bench.routing.scenarios import Scenario

Sample = dict[str, Any]

BASELINE = "lor"
"""Whose p99 every other is set against."""

FIGURES = (
    "requests",
    "ttft_p50_ms",
    "ttft_p99_ms",
    "tpot_p99_ms",
    "slo",
    "hit",
    "cloud_requests",
    "cloud_cost",
    "lost",
    "refused",
    "retried",
    "resumed",
    "recovery_p99_ms",
)
"""Of a sample, summed up as median, least and greatest over the seeds."""


def runs(scenarios: Sequence[Scenario], seeds: int, *, short: bool = False) -> list[Run]:
    """The runs to be made, those of a seed together."""
    return [
        Run(scenario.name, entry.policy, entry.routers, seed, short)
        for seed in range(1, seeds + 1)
        for scenario in scenarios
        for entry in scenario.entries
    ]


def samples(wanted: Sequence[Run], jobs: int, done: Callable[[Sample], None]) -> list[Sample]:
    """Makes the runs, so many at once; their figures in the order of `wanted`."""
    if jobs <= 1:
        return [_told(play(run), done) for run in wanted]
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(play, run) for run in wanted]
        try:
            for future in as_completed(futures):
                done(future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        return [future.result() for future in futures]


def _told(sample: Sample, done: Callable[[Sample], None]) -> Sample:
    done(sample)
    return sample


def rows(scenarios: Iterable[Scenario], made: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row for each scenario and contender that was run, in the order of the scenarios."""
    return [
        _row(mine, of(made, scenario.name, BASELINE, entry.routers))
        for scenario in scenarios
        for entry in scenario.entries
        if (mine := of(made, scenario.name, entry.policy, entry.routers))
    ]


def _row(mine: Sequence[Sample], baseline: Sequence[Sample]) -> dict[str, Any]:
    return {
        **{name: mine[0][name] for name in ("scenario", "policy", "routers")},
        "seeds": len(mine),
        **{name: figure(number(sample, name) for sample in mine) for name in FIGURES},
        "ttft_p95_ms": figure(_at(sample, 95) for sample in mine),
        "ttft_p99_to_lor": ratio(mine, baseline, "ttft_p99_ms"),
        "cdf": _cdf(mine),
    }


def of(made: Sequence[Sample], scenario: str, policy: str, routers: int = 1) -> list[Sample]:
    """The runs of a scenario with a contender, one for each seed."""
    return [
        sample
        for sample in made
        if sample["scenario"] == scenario
        and sample["policy"] == policy
        and sample["routers"] == routers
    ]


def ratio(mine: Sequence[Sample], other: Sequence[Sample], name: str) -> Figure:
    """A figure over another contender's, taken within a seed: both had the same requests."""
    by_seed = {sample["seed"]: sample for sample in other}
    return figure(
        number(sample, name) / (number(by_seed[sample["seed"]], name) or math.nan)
        for sample in mine
        if sample["seed"] in by_seed
    )


def number(sample: Sample, name: str) -> float:
    """A figure of a run, NaN where it has none; None is how JSON has that."""
    value = sample.get(name)
    return math.nan if value is None else float(value)


def _at(sample: Sample, percentile: float) -> float:
    """The value in ms at a percentile of the kept CDF."""
    return next((float(ms) for ms, at in sample["cdf"] if at == percentile), math.nan)


def _cdf(mine: Sequence[Sample]) -> list[list[float]]:
    """At each percentile the median over the seeds of its value in ms."""
    by_percentile: dict[float, list[float]] = {}
    for sample in mine:
        for value, at in sample["cdf"]:
            by_percentile.setdefault(at, []).append(value)
    return [[figure(values)["median"] or 0.0, at] for at, values in by_percentile.items()]
