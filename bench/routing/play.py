"""Plays one scenario with one contender and one seed, and measures it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from random import Random
from typing import Any, NamedTuple

from bench.routing.cloud import Cloud
from bench.routing.contenders import making
from bench.routing.policy import Policy
from bench.routing.quantiles import outline, percentile
from bench.routing.scenarios import BY_NAME, Scenario
from bench.routing.simulation import Simulation
from bench.routing.workloads import Job
from services.router.core.policy import Objective

CDF_AT = (1, 5, *range(10, 90, 5), 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.3, 99.6, 99.9)
RECOVERY = 20.0
"""Seconds after a kill whose arrivals are looked at by themselves."""


class Run(NamedTuple):
    """One game. Ordered by how a run of all of them goes: seeds last."""

    scenario: str
    policy: str
    routers: int
    seed: int
    short: bool = False


def play(run: Run) -> dict[str, Any]:
    """Its figures, as JSON values."""
    scenario = BY_NAME[run.scenario]
    if run.short:
        scenario = scenario.shorter()
    began = time.perf_counter()
    simulation, jobs, _ = simulate(scenario, run.policy, run.routers, run.seed)
    counted = [job for job in jobs if job.arrived >= scenario.warm]
    found: dict[str, Any] = {
        "scenario": run.scenario,
        "policy": run.policy,
        "routers": run.routers,
        "seed": run.seed,
        **figures(counted, scenario.objective, scenario.cloud),
        **_counts(simulation),
        "seconds": round(time.perf_counter() - began, 2),
    }
    if scenario.kills:
        found |= _recovery(counted, scenario)
    return found


def simulate(
    scenario: Scenario, policy: str, routers: int, seed: int
) -> tuple[Simulation, list[Job], list[Policy]]:
    """The game itself: the laboratory after it, its jobs, and the routers."""
    jobs = scenario.jobs(seed, routers)
    plant = scenario.plant(seed)
    simulation = Simulation(plant, scenario.cloud)
    make = making(policy, scenario)
    players = [
        make(simulation, plant.shapes, routers, Random(f"{seed}/router/{number}"))  # noqa: S311
        for number in range(routers)
    ]
    simulation.run(jobs, players, seed)
    return simulation, jobs, players


def figures(jobs: Sequence[Job], objective: Objective, cloud: Cloud | None) -> dict[str, Any]:
    """What became of these jobs: times in ms, shares between 0 and 1."""
    served = [job for job in jobs if job.ended is not None]
    ttfts = sorted(1e3 * ttft for job in served if (ttft := job.ttft) is not None)
    tpots = sorted(1e3 * tpot for job in served if (tpot := job.tpot) is not None)
    found: dict[str, Any] = {
        "requests": len(jobs),
        "lost": len(jobs) - len(served) - sum(job.refused for job in jobs),
        "ttft_mean_ms": sum(ttfts) / len(ttfts) if ttfts else None,
        "slo": sum(_in_time(job, objective) for job in served) / len(jobs) if jobs else None,
        "cdf": [(round(value, 2), at) for value, at in outline(ttfts, CDF_AT)],
        "hit": _share(sum(job.cached for job in served), sum(job.prompt for job in served)),
    }
    for at in (50, 90, 99, 99.9):
        found[f"ttft_p{at:g}_ms"] = percentile(ttfts, at) if ttfts else None
        found[f"tpot_p{at:g}_ms"] = percentile(tpots, at) if tpots else None
    if cloud is not None:
        bill = sum(cloud.cost(job) for job in jobs if job.cloud)
        found["cloud_cost"] = _share(bill, sum(cloud.cost(job) for job in jobs))
        found["cloud_requests"] = _share(sum(job.cloud for job in jobs), len(jobs))
    errors = sorted(
        ttft / job.predicted
        for job in served
        if job.predicted and job.attempts == 1 and not job.cloud and (ttft := job.ttft)
    )
    if errors:
        for at in (10, 50, 90, 99):
            found[f"ttft_over_predicted_p{at}"] = percentile(errors, at)
    return found


def _in_time(job: Job, objective: Objective) -> bool:
    ttft, tpot = job.ttft, job.tpot
    return (
        ttft is not None and ttft <= objective.ttft and tpot is not None and tpot <= objective.tpot
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _counts(simulation: Simulation) -> dict[str, Any]:
    counts = simulation.counts
    replicas = [*simulation.replicas, *simulation.retired]
    return {
        "retried": counts.retried,
        "resumed": counts.resumed,
        "waited": counts.waited,
        "refused": counts.refused,
        "sent": counts.sent,
        "preempted": sum(replica.totals.preempted for replica in replicas),
        "steps": sum(replica.totals.steps for replica in replicas),
    }


def _recovery(jobs: Sequence[Job], scenario: Scenario) -> dict[str, Any]:
    kill = scenario.kills[0]
    parts = {
        "before": (scenario.warm, kill.at),
        "recovery": (kill.at, kill.at + RECOVERY),
        "without": (kill.at + RECOVERY, kill.back),
        "returned": (kill.back, kill.back + RECOVERY),
    }
    found = {}
    for name, (since, until) in parts.items():
        ttfts = sorted(
            1e3 * ttft for job in jobs if since <= job.arrived < until and (ttft := job.ttft)
        )
        found[f"{name}_p99_ms"] = percentile(ttfts, 99) if ttfts else None
    return found
