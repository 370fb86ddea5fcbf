"""Games of the routing laboratory, some hundred requests each: the same seed is the same game, no
request is lost, and the router's own core does what it is there for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from bench.routing import baselines, overflow, probing
from bench.routing.cloud import Cloud
from bench.routing.contenders import LABELS, label, making
from bench.routing.play import Run, figures, play, simulate
from bench.routing.policy import Elsewhere
from bench.routing.quantiles import percentile
from bench.routing.replica import Replica, Report, Shape
from bench.routing.scenarios import BY_NAME, FULL_STEP, REPLICAS, SHAPE, Scenario, capacity
from bench.routing.simulation import Kill, Plant, Simulation
from bench.routing.workloads import Job, Trace, lengths, mean_lengths
from services.router.core.policy import Objective

SHORT = {"seconds": 12.0, "warm": 2.0}
ALL = sorted({entry.policy for scenario in BY_NAME.values() for entry in scenario.entries})


def short(name: str, **changes: Any) -> Scenario:
    return replace(BY_NAME[name], **(SHORT | changes))


def p99(scenario: Scenario, policy: str, routers: int = 1, seed: int = 1) -> float:
    _, jobs, _ = simulate(scenario, policy, routers, seed)
    counted = [job for job in jobs if job.arrived >= scenario.warm]
    return float(figures(counted, scenario.objective, scenario.cloud)["ttft_p99_ms"])


def test_the_core_beats_round_robin_where_half_of_the_replicas_are_slow():
    scenario = short("half-slow", seconds=20.0)
    core, turns = p99(scenario, "core"), p99(scenario, "round-robin")
    # Round robin gives the slow ones more than they can do: its times grow with the game's.
    assert core < 0.2 * turns


def test_the_core_is_better_than_requests_counted_wherever_it_is_held_against_them():
    for name in ("alike", "half-slow"):
        assert p99(short(name), "core") < 0.8 * p99(short(name), "lor")


def test_the_core_knows_what_it_has_sent_before_anybody_reports_it():
    # A burst at one moment: who went by reports alone would send all of it to one replica.
    simulation = Simulation(Plant((Shape(),) * REPLICAS))
    router = making("core", BY_NAME["alike"])(
        simulation, (Shape(),) * REPLICAS, 1, Random("router")
    )
    jobs = [Job(number, 0.0, 1_000, 5) for number in range(4 * REPLICAS)]
    simulation.run(jobs, [router], 0)
    assert simulation.counts.sent == [4] * REPLICAS


@pytest.mark.parametrize("policy", ALL)
def test_the_same_seed_is_the_same_game_and_nobody_is_lost(policy):
    name = "overflow" if policy.startswith(("cap-", "gie-saturation")) else "antagonists"
    games = [simulate(short(name, seconds=5.0, warm=1.0), policy, 1, seed) for seed in (1, 1, 2)]
    outcomes = [
        [(job.arrived, job.backend, job.cloud, job.first, job.ended) for job in jobs]
        for _, jobs, _ in games
    ]
    assert outcomes[0] == outcomes[1]
    assert outcomes[0] != outcomes[2]
    simulation, jobs, _ = games[0]
    assert all(job.ended is not None for job in jobs)
    assert all(job.arrived < job.first <= job.ended for job in jobs if job.first is not None)
    local = [job for job in jobs if not job.cloud]
    assert sum(simulation.counts.sent) == len(local)
    made = sum(replica.totals.produced for replica in simulation.replicas)
    assert made == sum(job.output for job in local)


def test_whoever_decides_meets_the_same_requests_and_the_same_antagonists():
    scenario = short("antagonists")
    first, second = (simulate(scenario, policy, 1, 5) for policy in ("lor", "core"))
    asked = [
        [(job.arrived, job.prompt, job.output) for job in jobs] for _, jobs, _ in (first, second)
    ]
    assert asked[0] == asked[1]
    spells = [
        [[slow(0.1 * tick) for tick in range(200)] for slow in scenario.plant(5).slowness]
        for _ in range(2)
    ]
    assert spells[0] == spells[1]
    assert spells[0][0] != spells[0][1]


@pytest.mark.parametrize(("policy", "routers"), [("core", 1), ("core", 4), ("lor", 1)])
def test_a_killed_replica_loses_no_request(policy, routers):
    scenario = short("kill", kills=(Kill(backend=2, at=5.0, back=9.0),))
    simulation, jobs, _ = simulate(scenario, policy, routers, 1)
    assert all(job.ended is not None and not job.refused for job in jobs)
    assert simulation.counts.resumed > 0
    moved = [job for job in jobs if job.tried]
    assert all(job.attempts > 1 for job in moved)
    # What was delivered before is not made again.
    replicas = [*simulation.replicas, *simulation.retired]
    assert sum(r.totals.produced for r in replicas) == sum(job.output for job in jobs)


def test_a_replica_that_returns_gets_its_share_little_by_little():
    scenario = short("kill", seconds=24.0, load=0.5, kills=(Kill(backend=2, at=5.0, back=9.0),))
    _, jobs, _ = simulate(scenario, "core", 1, 1)

    def share(since: float, until: float) -> float:
        there = [job for job in jobs if since <= job.arrived < until]
        return sum(job.backend == 2 for job in there) / len(there)

    assert share(9.1, 11.0) < 0.5 / REPLICAS < share(20.0, 24.0)


def test_the_cloud_takes_what_the_replicas_cannot_and_little_else():
    scenario = short("overflow", seconds=45.0)
    found = play_scenario(scenario, "core")
    quiet = play_scenario(replace(scenario, load=0.5, seconds=35.0), "core")
    assert found["slo"] > 0.99
    assert 0.02 < found["cloud_cost"] < 0.3
    assert quiet["cloud_cost"] == 0.0
    everything = play_scenario(replace(scenario, seconds=10.0), "cap-1")
    assert everything["cloud_cost"] > 0.8


def play_scenario(scenario: Scenario, policy: str) -> dict[str, Any]:
    _, jobs, _ = simulate(scenario, policy, 1, 1)
    return figures(jobs, scenario.objective, scenario.cloud)


def test_affinity_finds_more_in_caches_than_chance():
    scenario = short("prefixes", seconds=90.0)
    told, blind = (
        play_scenario(scenario, policy)["hit"] for policy in ("core", "core-no-affinity")
    )
    assert told > 1.3 * blind > 0.0


def test_a_game_tells_what_became_of_its_requests(monkeypatch):
    monkeypatch.setitem(BY_NAME, "kill", short("kill", kills=(Kill(1, 5.0, 9.0),)))
    found = play(Run("kill", "core", 1, 1))
    assert found["lost"] == found["refused"] == 0
    assert found["requests"] > 500
    assert found["ttft_p50_ms"] < found["ttft_p99_ms"]
    assert found["recovery_p99_ms"] > 0


def test_figures_count_the_late_the_slow_and_the_refused_as_misses():
    objective, cloud = Objective(ttft=1.0, tpot=0.1), Cloud(prompt_price=1.0, output_price=2.0)

    def job(first: float | None, ended: float | None, **more: Any) -> Job:
        return Job(0, 10.0, 100, 11, first=first, ended=ended, **more)

    jobs = [
        job(10.5, 11.0),
        job(11.5, 12.0),
        job(10.5, 12.0),
        job(None, None, refused=True),
        job(10.4, 10.9, cloud=True),
    ]
    found = figures(jobs, objective, cloud)
    assert found["slo"] == pytest.approx(2 / 5)
    assert found["cloud_cost"] == pytest.approx(1 / 5)
    assert found["lost"] == 0
    assert found["ttft_p50_ms"] == pytest.approx(500.0)


def test_full_load_is_what_a_replica_does_whose_steps_take_forty_milliseconds():
    # As many requests at once as there are then: each one that ends makes room for the next.
    wanted = capacity(Trace.CONVERSATION)
    drawn = lengths(Trace.CONVERSATION, Random("full"))
    _, output = mean_lengths(Trace.CONVERSATION)
    replica = Replica(SHAPE)
    for number in range(round(wanted * output * FULL_STEP)):
        replica.take(Job(number, 0.0, *next(drawn)))
    now = ended = 0.0
    for step in range(6_000):
        now += replica.begin(now) or 0.0
        for done in replica.end().ended:
            replica.take(Job(done.number, 0.0, *next(drawn)))
            ended += step >= 1_000
        if step == 999:
            began = now
    assert ended / (now - began) == pytest.approx(wanted, rel=0.03)
    assert (now - began) / 5_000 == pytest.approx(FULL_STEP, rel=0.05)


class Nowhere:
    """A world without anything in it, for policies that are asked one thing."""

    round_trip = 0.0
    replicas = ()
    step_ends = ()

    def under_way(self, backend: int) -> Sequence[Job]:
        return ()

    def every(self, interval: float, act: Any) -> None:
        return None


def policy(kind: Any, **more: Any) -> Any:
    return kind(Nowhere(), (Shape(),) * 3, 1, Random("policy"), **more)


def job(number: int = 0, prompt: int = 100) -> Job:
    return Job(number, 0.0, prompt, 10)


def test_baselines_choose_as_their_sources_say():
    turns = policy(baselines.RoundRobin)
    assert sorted(turns.choose(job(), 0.0) for _ in range(3)) == [0, 1, 2]

    fewest = policy(baselines.LeastOutstanding)
    for backend in (0, 0, 1, 1, 2):
        fewest.sent(job(), backend, 1, 0.0)
    assert fewest.choose(job(), 0.0) == 2

    metric = policy(baselines.LMetric)
    loads = (Report(running=10), Report(running=2, queued_prefill_tokens=5_000), Report(running=3))
    for backend, report in enumerate(loads):
        metric.reported(backend, report, 0, 0.0)
    # 110 · 100, 3 · 5100, 4 · 100.
    assert metric.choose(job(), 0.0) == 2

    cubic = policy(baselines.C3)
    for backend, waiting in enumerate((4, 0, 2)):
        other = job(backend)
        cubic.sent(other, backend, 1, 0.0)
        other.sent, other.backend = 0.0, backend
        cubic.first(other, 0.1)
        cubic.reported(backend, Report(waiting=waiting), 1, 0.1)
    assert cubic.choose(job(), 0.2) == 1

    peak = policy(baselines.PeakEwma)
    for backend, seconds in enumerate((0.9, 0.3, 0.9)):
        other = job(backend)
        other.sent, other.backend = 0.0, backend
        peak.sent(other, backend, 1, 0.0)
        peak.first(other, seconds)
    assert {peak.choose(job(), 1.0) for _ in range(50)} >= {1}


def test_an_unreported_request_counts_for_every_router_until_it_is_reported():
    known = baselines.LMetric(Nowhere(), (Shape(),) * 2, 4, Random("policy"))
    known.sent(job(prompt=500), 0, 1, 0.0)
    assert (known.backends[0].queued, known.backends[0].present) == (2_000, 4)
    known.reported(0, Report(running=1, queued_prefill_tokens=500), 1, 0.0)
    assert (known.backends[0].queued, known.backends[0].present) == (500, 1)


def test_a_static_cap_and_a_saturated_pool_send_to_the_cloud():
    capped = policy(overflow.StaticCap, cap=1)
    for backend in range(3):
        assert capped.choose(job(), 0.0) in range(backend, 3)
        capped.sent(job(), backend, 1, 0.0)
    assert capped.choose(job(), 0.0) is Elsewhere.CLOUD

    gie = policy(overflow.GieSaturation)
    full = Report(kv_used_tokens=90, kv_total_tokens=100)
    gie.scraped = [full, full, Report(waiting=6, kv_total_tokens=100)]
    assert gie.choose(job(), 0.0) is Elsewhere.CLOUD
    gie.scraped[1] = Report(kv_used_tokens=10, kv_total_tokens=100)
    assert gie.choose(job(), 0.0) == 1


def test_a_provider_is_as_slow_for_a_request_whoever_sends_it():
    cloud = Cloud()
    assert cloud.times(50, 3) == cloud.times(50, 3)
    firsts = sorted(first for first, _ in cloud.times(20_000, 3))
    assert percentile(firsts, 95) == pytest.approx(cloud.first_p95, rel=0.03)


def test_everybody_who_plays_has_a_name():
    assert all(label(policy) for policy in ALL)
    assert probing.SCRAPE_INTERVAL == 0.05
    assert set(ALL) >= {"lor", "c3", "core"}
    assert "lor" in LABELS
