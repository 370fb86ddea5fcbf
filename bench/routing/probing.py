"""Baselines that look at replicas by themselves: Prequal's probes, GIE's scrapes, an oracle."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import ceil
from random import Random
from typing import NamedTuple

from bench.routing.policy import Choice, World
from bench.routing.quantiles import percentile
from bench.routing.replica import Report, Shape
from bench.routing.tracker import Known
from bench.routing.workloads import Job

SCRAPE_INTERVAL = 0.05
"""Seconds between GIE's looks at its endpoints' metrics, its default."""


class GieQueueKv(Known):
    """Gateway API inference extension: the sum of its queue and KV scorers on scraped metrics.

    Queues are scored between the longest (0) and the shortest (1), KV cache by what is free; the
    highest sum wins.
    """

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        self._world = world
        self.scraped = [Report() for _ in shapes]
        self._next = 0
        # Each endpoint has a clock of its own there: they are not looked at all at once.
        world.every(SCRAPE_INTERVAL / len(shapes), self._scrape)

    def _scrape(self, _: float) -> None:
        self.scraped[self._next] = self._world.replicas[self._next].report()
        self._next = (self._next + 1) % len(self.scraped)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The highest score."""
        return self.among(self.alive())

    def among(self, these: Sequence[int]) -> int:
        """The highest score of some replicas, as the lowest negative one."""
        queues = [self.scraped[i].waiting for i in these]
        least, most = min(queues), max(queues)
        costs = []
        for i, queue in zip(these, queues, strict=True):
            by_queue = (most - queue) / (most - least) if most > least else 1.0
            report = self.scraped[i]
            by_kv = 1.0 - report.kv_used_tokens / max(1, report.kv_total_tokens)
            costs.append(-(by_queue + by_kv))
        return self.least(costs, these)


PROBES = 3
"""Prequal's probes for each request."""

POOL = 16
PROBE_AGE = 1.0
"""Seconds after which a probe's answer is thrown away."""

HOT = 2**-0.25
"""The quantile of requests in flight above which a replica is hot; both as in its paper."""

RECENT = 64
NEAREST = 9
"""A replica tells the median time of those of its recent answers that began with about as many
requests in flight as there are now."""


class _Probe(NamedTuple):
    at: float
    backend: int
    in_flight: int
    seconds: float


class Prequal(Known):
    """Prequal: a pool of probes; among replicas with few requests in flight the one of least
    latency, else the one with the fewest. Latency is the time to the first token, as replicas
    measure it."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        self._world = world
        self._pool: deque[_Probe] = deque()
        self._known: deque[int] = deque(maxlen=128)
        self._recent: list[deque[tuple[int, float]]] = [deque(maxlen=RECENT) for _ in shapes]
        self._began: dict[int, int] = {}

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """Hot-cold lexicographic selection on the pool."""
        choice = self._select(now)
        self._probe(now)
        return choice

    def _select(self, now: float) -> int:
        pool = self._pool
        while pool and pool[0].at < now - PROBE_AGE:
            pool.popleft()
        there = [p for p in pool if self.backends[p.backend].alive and p.at <= now]
        if len(there) < 2:
            return self.random.choice(self.alive())
        limit = percentile(sorted(self._known), 100 * HOT) if self._known else 0.0
        cold = [p for p in there if p.in_flight <= limit]
        best = min(cold, key=lambda p: p.seconds) if cold else min(there, key=lambda p: p.in_flight)
        # A probe is used once; the request that follows it makes it untrue. The worst goes too.
        pool.remove(best)
        if pool:
            hot = [p for p in pool if p.in_flight > limit]
            pool.remove(
                max(hot, key=lambda p: p.in_flight) if hot else max(pool, key=lambda p: p.seconds)
            )
        return best.backend

    def sent(self, job: Job, backend: int, start: int, now: float) -> None:
        """A job is on its way; the replica will note how many it finds there."""
        super().sent(job, backend, start, now)
        self._began[job.number] = len(self._world.replicas[backend])

    def _probe(self, now: float) -> None:
        alive = self.alive()
        for backend in self.random.sample(alive, min(PROBES, len(alive))):
            in_flight = len(self._world.replicas[backend])
            seconds = self._typical(backend, in_flight)
            self._known.append(in_flight)
            self._pool.append(_Probe(now + self._world.round_trip, backend, in_flight, seconds))
            while len(self._pool) > POOL:
                self._pool.popleft()

    def _typical(self, backend: int, in_flight: int) -> float:
        near = sorted(self._recent[backend], key=lambda answer: abs(answer[0] - in_flight))
        return percentile(sorted(seconds for _, seconds in near[:NEAREST]), 50) if near else 0.0

    def first(self, job: Job, now: float) -> None:
        """The replica has measured another answer."""
        if not job.cloud and job.sent is not None:
            self._recent[job.backend].append((self._began.pop(job.number), now - job.sent))


class Oracle(Known):
    """Greedy on perfect state: the least time to the first token for this one request, reckoned
    from what the replicas really hold, what is under way to them, and how slow they are now."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        self._world = world

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The least time."""
        alive = self.alive()
        return self.least([self._time(i, job, now) for i in alive], alive)

    def _time(self, backend: int, job: Job, now: float) -> float:
        world = self._world
        replica, under_way = world.replicas[backend], world.under_way(backend)
        shape, costs = replica.shape, replica.shape.costs
        cached = replica.held(job.blocks) * shape.block
        queued = replica.queued + sum(j.prompt for j in under_way) + job.prompt - cached
        present = len(replica) + len(under_way)
        steps = ceil(queued / max(1, shape.budget - present))
        rest = max(0.0, world.step_ends[backend] - now) if replica.stepping else 0.0
        each = costs.base + costs.decode * present + costs.context * replica.context
        return rest + replica.slowness(now) * (steps * each + costs.prefill * queued)
