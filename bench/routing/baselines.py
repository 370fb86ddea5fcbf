"""Policies to compare with, each as its source describes it, fed with what a router can know.

Round robin, power of two, least outstanding requests, Peak-EWMA, C3, LMetric. What probes and
scrapes is in probing.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp
from random import Random

from bench.routing.policy import Choice, World
from bench.routing.replica import Report, Shape
from bench.routing.tracker import Known
from bench.routing.workloads import Job


class RoundRobin(Known):
    """One after the other."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        # Routers that begin at the same replica would march in step.
        self._next = random.randrange(len(shapes))

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The next in turn."""
        for _ in self.backends:
            self._next = (self._next + 1) % len(self.backends)
            if self.backends[self._next].alive:
                break
        return self._next


class PowerOfTwo(Known):
    """The one with fewer outstanding requests of two drawn at random."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The better of two."""
        alive = self.alive()
        two = self.random.sample(alive, min(2, len(alive)))
        return self.least([self.backends[i].mine for i in two], two)


class LeastOutstanding(Known):
    """The one with the fewest requests that this router has sent and that are not complete."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The least busy, of its own requests."""
        alive = self.alive()
        return self.least([self.backends[i].mine for i in alive], alive)


PEAK_DECAY = 10.0
"""Seconds; Finagle's default."""


class PeakEwma(Known):
    """Finagle's Peak-EWMA: an average of times to the first token that jumps up at once and decays
    slowly, times the requests outstanding; of two drawn at random, as there."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        self._costs = [0.0] * len(shapes)
        self._at = [0.0] * len(shapes)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The cheaper of two."""
        alive = self.alive()
        two = self.random.sample(alive, min(2, len(alive)))
        return self.least([self._cost(i, now) for i in two], two)

    def _cost(self, backend: int, now: float) -> float:
        self._observe(backend, 0.0, now)
        return self._costs[backend] * (self.backends[backend].mine + 1)

    def _observe(self, backend: int, seconds: float, now: float) -> None:
        cost = self._costs[backend]
        weight = exp(-(now - self._at[backend]) / PEAK_DECAY)
        self._costs[backend] = (
            seconds if seconds > cost else cost * weight + seconds * (1.0 - weight)
        )
        self._at[backend] = now

    def first(self, job: Job, now: float) -> None:
        """A first token: how long it took."""
        if not job.cloud and job.sent is not None:
            self._observe(job.backend, now - job.sent, now)


C3_WEIGHT = 0.1
"""Of the latest answer in C3's averages (its paper's α of 0.9 for the past)."""


class C3(Known):
    """C3's cubic replica ranking, where a request's service is its way to the first token.

    `R - 1/μ + q³/μ`, q = 1 + outstanding · routers + the queue that the replica reports; R is the
    time to the first token as the router sees it, 1/μ what prefilling a request costs there. Both
    are averages over answers. Requests past their first token are in nobody's way, nearly, so they
    count neither as outstanding nor as queued.
    """

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)
        self._response = [0.0] * len(shapes)
        self._service = [0.0] * len(shapes)
        self._queue = [0.0] * len(shapes)
        self._before_first = [0] * len(shapes)
        self._answers = [0] * len(shapes)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The best rank."""
        alive = self.alive()
        return self.least([self._rank(i) for i in alive], alive)

    def _rank(self, backend: int) -> float:
        expected = 1 + self._before_first[backend] * self.routers + self._queue[backend]
        service = self._service[backend]
        return self._response[backend] - service + expected**3 * service

    def sent(self, job: Job, backend: int, start: int, now: float) -> None:
        """One more on its way."""
        super().sent(job, backend, start, now)
        self._before_first[backend] += 1

    def first(self, job: Job, now: float) -> None:
        """An answer, in C3's sense, with the replica's feedback."""
        if job.cloud or job.sent is None:
            return
        backend = job.backend
        self._before_first[backend] -= 1
        seen = self.backends[backend]
        report, costs = seen.report, seen.shape.costs
        # What the replica would report as the service time: its prefill, at its own speed.
        service = report.step_time_ratio * (costs.base + costs.prefill * (job.prompt - job.cached))
        self._answers[backend] += 1
        weight = max(C3_WEIGHT, 1.0 / self._answers[backend])
        self._response[backend] += weight * (now - job.sent - self._response[backend])
        self._service[backend] += weight * (service - self._service[backend])

    def reported(self, backend: int, report: Report, seen: int, now: float) -> None:
        """The replica's queue rides along with every message."""
        super().reported(backend, report, seen, now)
        self._queue[backend] += C3_QUEUE_WEIGHT * (report.waiting - self._queue[backend])

    def lost(self, backend: int, now: float) -> None:
        """Nothing is outstanding there any more."""
        super().lost(backend, now)
        self._before_first[backend] = 0


C3_QUEUE_WEIGHT = 0.5
"""Of the latest report in C3's average of queues."""


class LMetric(Known):
    """LMetric: prompt tokens to be prefilled there, this one's included, times the batch."""

    def __init__(self, world: World, shapes: Sequence[Shape], routers: int, random: Random) -> None:
        super().__init__(shapes, routers, random)

    def choose(self, job: Job, now: float, *, impatient: bool = False) -> Choice:
        """The smallest product."""
        alive = self.alive()
        costs = [
            float((seen.queued + job.prompt) * (seen.present + 1))
            for seen in (self.backends[i] for i in alive)
        ]
        return self.least(costs, alive)
