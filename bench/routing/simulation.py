"""The laboratory's clock: replicas, routers, network and cloud as events in order of time.

It decides nothing: where a job goes is the policy's matter, how long it takes the replica's.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bench.routing.cloud import Cloud
from bench.routing.policy import Choice, Elsewhere, Policy
from bench.routing.replica import Replica, Shape
from bench.routing.speeds import Slowness, even
from bench.routing.workloads import Job

BUSY_INTERVAL = 0.05
"""Seconds between the reports of a busy replica, besides those that come with news; as in
services/chassis/model_streams.py."""

IDLE_EVERY = 20
"""An idle one reports at every such of those moments."""


@dataclass(frozen=True)
class Kill:
    """A replica's process dies, and its successor is there some time later.

    `notice` is how long routers take to see that its connection is gone.
    """

    backend: int
    at: float
    back: float
    notice: float = 0.05


@dataclass(frozen=True)
class Plant:
    """The replicas, and the network to them. `delay` is one way, in seconds."""

    shapes: tuple[Shape, ...]
    slowness: tuple[Slowness, ...] = ()
    delay: float = 0.00025
    kills: tuple[Kill, ...] = ()


@dataclass
class Counts:
    """What happened in a run besides the jobs' own records."""

    decisions: int = 0
    retried: int = 0
    resumed: int = 0
    waited: int = 0
    refused: int = 0
    sent: list[int] = field(default_factory=list)


class Simulation:
    """One run. `routers` may be filled after construction, since policies may need the World."""

    def __init__(self, plant: Plant, cloud: Cloud | None = None) -> None:
        self.plant = plant
        self.cloud = cloud
        self.counts = Counts(sent=[0] * len(plant.shapes))
        self.round_trip = 2 * plant.delay
        self.replicas = [Replica(shape, self._slowness(i)) for i, shape in enumerate(plant.shapes)]
        self.retired: list[Replica] = []
        self.step_ends = [0.0] * len(self.replicas)
        self._alive = [True] * len(self.replicas)
        self._epochs = [0] * len(self.replicas)
        self._under_way: list[deque[Job]] = [deque() for _ in self.replicas]
        self._routers: Sequence[Policy] = ()
        self._starts: list[list[int]] = []
        self._seen: list[list[int]] = []
        self._events: list[tuple[float, int, Callable[..., None], Any]] = []
        self._ties = count()
        self._left = 0
        self._cloud_times: list[tuple[float, float]] = []

    def under_way(self, backend: int) -> Sequence[Job]:
        """Jobs that were sent there and have not arrived."""
        return self._under_way[backend]

    def every(self, interval: float, act: Callable[[float], None]) -> None:
        """Calls back at every multiple of an interval."""

        def tick(now: float, turn: int) -> None:
            act(now)
            self._at((turn + 1) * interval, tick, turn + 1)

        self._at(0.0, tick, 0)

    def run(self, jobs: Sequence[Job], routers: Sequence[Policy], seed: int) -> None:
        """Plays every job to its end; what became of them is in the jobs."""
        self._routers = routers
        self._starts = [[0] * len(self.replicas) for _ in routers]
        self._seen = [[0] * len(self.replicas) for _ in routers]
        self._left = len(jobs)
        if self.cloud is not None:
            self._cloud_times = self.cloud.times(len(jobs), seed)
        for backend in range(len(self.replicas)):
            # Not all at the same moment, as with processes that were not started together.
            self._at(BUSY_INTERVAL * backend / len(self.replicas), self._tick, (backend, 0))
        for kill in self.plant.kills:
            self._at(kill.at, self._kill, kill)
        arrivals = iter(jobs)
        self._next_arrival(arrivals)
        events, pop = self._events, heapq.heappop
        while self._left:
            now, _, act, what = pop(events)
            act(now, what)

    def _at(self, when: float, act: Callable[..., None], what: Any) -> None:
        heapq.heappush(self._events, (when, next(self._ties), act, what))

    def _slowness(self, backend: int) -> Slowness:
        return self.plant.slowness[backend] if self.plant.slowness else even

    # Routers

    def _next_arrival(self, arrivals: Any) -> None:
        job = next(arrivals, None)
        if job is not None:
            self._at(job.arrived, self._arrive, (job, arrivals))

    def _arrive(self, now: float, what: Any) -> None:
        job, arrivals = what
        self._decide_or_wait(job, now)
        self._next_arrival(arrivals)

    def _decide_or_wait(self, job: Job, now: float) -> None:
        if self._decide(job, now):
            return
        self.counts.waited += 1
        if not self._routers[job.router].join(job, now):
            self._go_or_refuse(job, now)

    def _decide(self, job: Job, now: float) -> bool:
        """Asks the job's router; false when it has to wait (on)."""
        choice = self._ask(job, now)
        if choice is Elsewhere.WAIT:
            return False
        self._act(job, choice, now)
        return True

    def _go_or_refuse(self, job: Job, now: float) -> None:
        """It may not wait, or no longer: whoever would take it now gets it."""
        choice = self._ask(job, now, impatient=True)
        self._act(job, Elsewhere.REFUSE if choice is Elsewhere.WAIT else choice, now)

    def _ask(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        self.counts.decisions += 1
        return self._routers[job.router].choose(job, now, impatient=impatient)

    def _act(self, job: Job, choice: Choice, now: float) -> None:
        if choice is Elsewhere.CLOUD:
            self._send_to_cloud(job, now)
        elif isinstance(choice, int):
            self._send(job, choice, now)
        else:
            job.refused = True
            self.counts.refused += 1
            self._left -= 1

    def _serve_line(self, router: int, now: float) -> None:
        """As services/router/waiting_line.py: where one waits in vain, those like it do too."""
        policy = self._routers[router]
        for job in policy.shed(now):
            self._go_or_refuse(job, now)
        in_vain = set()
        for job in policy.in_order(now):
            claim = (job.tried, job.delivered > 0)
            if claim in in_vain:
                continue
            if self._decide(job, now):
                policy.leave(job, now, served=not job.refused)
            else:
                in_vain.add(claim)

    def _send(self, job: Job, backend: int, now: float) -> None:
        starts = self._starts[job.router]
        starts[backend] += 1
        job.sent, job.backend = now, backend
        job.attempts += 1
        self.counts.sent[backend] += 1
        self._under_way[backend].append(job)
        self._routers[job.router].sent(job, backend, starts[backend], now)
        self._at(now + self.plant.delay, self._reach, (job, self._epochs[backend]))

    # Replicas

    def _reach(self, now: float, what: tuple[Job, int]) -> None:
        job, epoch = what
        backend = job.backend
        if epoch != self._epochs[backend] or not self._alive[backend]:
            # The session it was written to is gone; kept until the router hears of that.
            self._at(now + self.plant.delay, self._fail, (job, backend))
            return
        self._under_way[backend].popleft()
        self._seen[job.router][backend] += 1
        replica = self.replicas[backend]
        replica.take(job)
        if not replica.stepping:
            self._begin(backend, now)

    def _begin(self, backend: int, now: float) -> None:
        seconds = self.replicas[backend].begin(now)
        if seconds is not None:
            self.step_ends[backend] = now + seconds
            self._at(now + seconds, self._end, (backend, self._epochs[backend]))

    def _end(self, now: float, what: tuple[int, int]) -> None:
        backend, epoch = what
        if epoch != self._epochs[backend]:
            return
        replica = self.replicas[backend]
        news = replica.end()
        if news.first or news.ended:
            routers = {job.router for job in news.first} | {job.router for job in news.ended}
            self._tell(backend, now, sorted(routers), news.first, news.ended)
        self._begin(backend, now)

    def _tell(
        self, backend: int, now: float, routers: Sequence[int], first: list[Job], ended: list[Job]
    ) -> None:
        """One message to each of some routers: its own jobs' news, and a report."""
        report = self.replicas[backend].report()
        changes = self.replicas[backend].cache_changes()
        seen = [(router, self._seen[router][backend]) for router in routers]
        what = (backend, self._epochs[backend], report, changes, seen, first, ended)
        self._at(now + self.plant.delay, self._hear, what)

    def _hear(self, now: float, what: Any) -> None:
        backend, epoch, report, changes, seen, first, ended = what
        if epoch != self._epochs[backend]:
            return
        routers = self._routers
        if changes.stored or changes.removed:
            for router in routers:
                router.cache_changed(backend, changes.stored, changes.removed)
        for job in first:
            job.first = now
            routers[job.router].first(job, now)
        for job in ended:
            job.ended = now
            self._left -= 1
            routers[job.router].ended(job, now)
        for router, known in seen:
            routers[router].reported(backend, report, known, now)
            if routers[router].waiting:
                self._serve_line(router, now)

    def _tick(self, now: float, what: tuple[int, int]) -> None:
        backend, turn = what
        if self._alive[backend] and (len(self.replicas[backend]) or turn % IDLE_EVERY == 0):
            self._tell(backend, now, range(len(self._routers)), [], [])
        self._at(now + BUSY_INTERVAL, self._tick, (backend, turn + 1))

    # Failures

    def _kill(self, now: float, kill: Kill) -> None:
        backend = kill.backend
        replica = self.replicas[backend]
        lost = replica.kill()
        self.retired.append(replica)
        self._alive[backend] = False
        self._epochs[backend] += 1
        self.replicas[backend] = Replica(self.plant.shapes[backend], self._slowness(backend))
        self._at(now + kill.notice, self._notice, (backend, lost))
        self._at(kill.back, self._return, backend)

    def _notice(self, now: float, what: tuple[int, list[Job]]) -> None:
        backend, lost = what
        for policy in self._routers:
            policy.lost(backend, now)
        for job in lost:
            self._again(job, backend, now)

    def _fail(self, now: float, what: tuple[Job, int]) -> None:
        job, backend = what
        self._under_way[backend].remove(job)
        self._again(job, backend, now)

    def _again(self, job: Job, backend: int, now: float) -> None:
        """A job whose replica is gone: somewhere else, from where it was."""
        job.tried |= {backend}
        if job.delivered:
            self.counts.resumed += 1
        else:
            self.counts.retried += 1
        self._decide_or_wait(job, now)

    def _return(self, now: float, backend: int) -> None:
        self._alive[backend] = True
        for router, policy in enumerate(self._routers):
            # A session of its own, that has seen nothing.
            self._starts[router][backend] = self._seen[router][backend] = 0
            policy.back(backend, now)
        self._tell(backend, now, range(len(self._routers)), [], [])

    # The cloud

    def _send_to_cloud(self, job: Job, now: float) -> None:
        first, each = self._cloud_times[job.number]
        job.cloud, job.sent, job.backend = True, now, -1
        job.attempts += 1
        self._routers[job.router].sent_to_cloud(job, now)
        self._at(now + first, self._cloud_first, job)
        left = job.output - job.delivered
        self._at(now + first + each * (left - 1), self._cloud_end, job)

    def _cloud_first(self, now: float, job: Job) -> None:
        if job.first is None:
            job.first = now
        self._routers[job.router].first(job, now)

    def _cloud_end(self, now: float, job: Job) -> None:
        job.ended = now
        self._left -= 1
        self._routers[job.router].ended(job, now)
        if self._routers[job.router].waiting:
            self._serve_line(job.router, now)
